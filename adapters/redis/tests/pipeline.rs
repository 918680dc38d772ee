//! Whole pipelines over a cluster of which a node does not answer: the messages of the other nodes go on.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use onceward::testing::{Habits, MemoryBroker};
use onceward::{Handled, KeyExtractor, KeySource, Message, Pipeline, PipelineConfig, handler_fn};
use onceward_redis::{RedisConfig, RedisStore};
use onceward_test_servers::redis::RedisCluster;
use support::{bucket, owners, scope};
use tokio_util::sync::CancellationToken;

/// Far more than wait in the pipeline at a time, so that those of the silent node could fill it.
const MESSAGES: u64 = 3_000;

type Runs = Arc<Mutex<HashSet<String>>>;

async fn wait(what: &str, so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !so() {
        assert!(Instant::now() < end, "not within two minutes: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn goes_on(is_killed: bool) {
    const AWAY: usize = 2;
    async fn note(runs: Runs, message: Message) -> Handled {
        runs.lock().unwrap().insert(String::from_utf8(message.payload().to_vec()).unwrap());
        Ok(())
    }
    let mut cluster = RedisCluster::start(3);
    for node in cluster.nodes() {
        node.cli(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let urls = cluster.urls();
    let config = RedisConfig::cluster(urls.iter().map(String::as_str)).unwrap();
    let store = Arc::new(RedisStore::new(&config).unwrap());
    let owners = owners(&cluster);
    let broker = MemoryBroker::new(Habits::default());
    let runs = Runs::default();
    let pipeline = Pipeline::builder(scope(), broker.consumer(), store)
        .keys([KeySource::MessageId])
        .config(PipelineConfig { concurrency: 32, max_in_flight: 256, ..PipelineConfig::default() })
        .park_exhausted()
        .handler(handler_fn(Arc::clone(&runs), note))
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(pipeline.run(stop.clone()));
    let publish = |text: &str| broker.publish(Message::builder(text.to_owned()).message_id(text));
    publish("first");
    wait("the first message", || runs.lock().unwrap().len() == 1).await;

    if is_killed {
        cluster.nodes_mut()[AWAY].kill();
    } else {
        cluster.nodes()[AWAY].pause(true);
    }
    let keys = KeyExtractor::new(&scope(), vec![KeySource::MessageId]);
    let mut stays = HashSet::new();
    for number in 0..MESSAGES {
        let text = number.to_string();
        let key = keys.key_of(&Message::builder("").message_id(&text).build()).unwrap();
        if owners[&bucket(&key)] != AWAY {
            stays.insert(text.clone());
        }
        publish(&text);
    }
    assert!(stays.len() > 1_500 && stays.len() < 2_500, "{}", stays.len());
    wait("all messages whose node answers", || {
        let runs = runs.lock().unwrap();
        stays.iter().all(|text| runs.contains(text))
    })
    .await;

    if is_killed {
        cluster.nodes_mut()[AWAY].start_again();
    } else {
        cluster.nodes()[AWAY].pause(false);
    }
    wait("all messages", || runs.lock().unwrap().len() as u64 == MESSAGES + 1).await;
    stop.cancel();
    let summary = running.await.unwrap().unwrap();
    assert_eq!((summary.handled(), summary.retried()), (MESSAGES + 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_holds_up_its_own_messages_only() {
    goes_on(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_holds_up_its_own_messages_only() {
    goes_on(false).await;
}
