//! The example `uppercase` on a real broker.
#[path = "../../examples/uppercase.rs"]
#[allow(unused)]
mod example;
use crate::support::{LIMIT, Topic, take, text};
use onceward::adapter::Consumer;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_is_transformed_once() {
    let (words, uppercase) = (Topic::new(1).await, Topic::new(1).await);
    for word in ["one", "two", "three"] {
        words.send(0, None, Some(word)).await;
    }
    let shutdown = CancellationToken::new();
    let run = example::uppercase(words.config(), uppercase.name.clone(), shutdown.clone());
    let run = tokio::spawn(run);
    let mut reader = uppercase.open().await;
    let results: Vec<_> = take(&mut reader, 3).await.iter().map(text).collect();
    assert_eq!(results, ["ONE", "TWO", "THREE"]);
    words.wait_committed(&[3]).await;
    shutdown.cancel();
    let summary = tokio::time::timeout(LIMIT, run).await.unwrap().unwrap().unwrap();
    assert_eq!((summary.records, summary.produced), (3, 3));
    reader.close().await.unwrap();
}
