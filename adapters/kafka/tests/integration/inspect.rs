//! Inspection of topics and groups, with and without rights.

use std::time::Duration;

use onceward::ErrorKind;
use onceward::adapter::{Consumer, Settlement};
use onceward_test_servers::kafka::Kafka;

use crate::support::{Topic, take, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lag_members_and_retention_are_inspected_without_joining_the_group() {
    let topic = Topic::new(2).await;
    topic.fill(10).await;
    let facts = topic.config().inspect_group().await.unwrap();
    assert_eq!((facts.lag, facts.partitions, facts.members), (20, 2, 0));
    assert_eq!(facts.group_state, "Dead");
    assert_eq!(facts.retention, Some(Duration::from_hours(7 * 24)));
    assert!(facts.unreadable.is_empty());

    let mut consumer = topic.open().await;
    until("both partitions are assigned", || consumer.assigned_partitions() == 2).await;
    assert_eq!(consumer.capabilities().retention, facts.retention);
    let taken = take(&mut consumer, 20).await;
    let batch: Vec<_> = taken.iter().map(|own| (own.tag, Settlement::Ack)).collect();
    consumer.acker().settle(&batch[..15]).await;
    // Which 15 of the 20 is chance: only what is below the first open one of its partition is committed.
    consumer.acker().settle(&batch[15..]).await;
    topic.wait_committed(&[10, 10]).await;
    let facts = topic.config().inspect_group().await.unwrap();
    assert_eq!((facts.lag, facts.members, facts.group_state.as_str()), (0, 1, "Stable"));
    consumer.close().await.unwrap();
    let letters = topic.config().connection.inspect_topic(&topic.name).await.unwrap();
    assert_eq!((letters.records, letters.writable), (20, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topic_is_named() {
    let topic = Topic::new(1).await;
    let mut config = topic.config();
    config.topics.names = vec!["nowhere".into()];
    let error = config.inspect_group().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("topic nowhere"), "{error}");
    let error = topic.config().connection.inspect_topic("nowhere").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_rights_are_reported() {
    let broker = tokio::task::spawn_blocking(Kafka::start_with_acls).await.unwrap();
    let (seen, readable) = (Topic::on(&broker, 1).await, Topic::on(&broker, 1).await);
    let names = [&seen, &readable].map(|topic| topic.name.clone());
    let broker = tokio::task::spawn_blocking(move || {
        broker.allow_on_topic(&names[0], &["Describe"]);
        broker.allow_on_topic(&names[1], &["Read"]);
        broker
    })
    .await
    .unwrap();
    let facts = seen.config().inspect_group().await.unwrap();
    assert_eq!(facts.unreadable, [seen.name.as_str()]);
    assert_eq!(facts.retention, None, "that needs DescribeConfigs");
    assert!(!seen.config().connection.inspect_topic(&seen.name).await.unwrap().writable);
    let facts = readable.config().inspect_group().await.unwrap();
    assert!(facts.unreadable.is_empty());
    assert!(!readable.config().connection.inspect_topic(&readable.name).await.unwrap().writable);
    let mut consumer = readable.open().await;
    assert_eq!(consumer.is_idle().await, Some(true), "Read and Describe are enough to consume");
    consumer.close().await.unwrap();
    drop(broker);
}
