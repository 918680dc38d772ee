//! Topics that are recreated, truncated or trimmed by retention under a consumer on a real broker: no record is lost, and
//! records deleted before they were read are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use onceward::adapter::{Consumer, Settled};
use onceward::telemetry::SourceState;
use onceward_kafka::KafkaConsumer;
use onceward_test_servers::kafka::Kafka;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::support::{self, LIMIT, Topic, ack, create, take, text, until};

/// Acks deliveries until all of `expected` were delivered; returns those that were, with their positions.
async fn ack_all(consumer: &mut KafkaConsumer, expected: &BTreeSet<String>) -> BTreeSet<(String, String)> {
    let (end, mut seen, mut places) = (Instant::now() + LIMIT, BTreeSet::new(), BTreeSet::new());
    while !expected.is_subset(&seen) {
        let left = || expected.difference(&seen).count();
        let received = tokio::time::timeout_at(end.into(), consumer.receive()).await;
        let received = received.unwrap_or_else(|_| panic!("{} of {} never came", left(), expected.len()));
        for own in received.unwrap().unwrap() {
            let position = own.message.position().unwrap();
            places.insert((text(&own), position.incarnation.to_string()));
            seen.insert(text(&own));
            ack(consumer, &[own]).await;
        }
    }
    places
}

fn numbered(round: usize, count: usize) -> BTreeSet<String> {
    (0..count).map(|number| format!("{round}:{number}")).collect()
}

async fn send_all(topic: &Topic, payloads: &BTreeSet<String>) {
    for (number, payload) in payloads.iter().enumerate() {
        let partition = i32::try_from(number).unwrap() % topic.partitions;
        topic.send(partition, None, Some(payload)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_recreated_five_times_while_records_are_in_flight_loses_none() {
    let topic = Topic::new(2).await;
    let mut consumer = topic.open().await;
    let mut incarnations = BTreeMap::<String, BTreeSet<String>>::new();
    // Shorter and longer than before, in turn.
    for (round, count) in [60, 20, 90, 15, 15, 120].into_iter().enumerate() {
        let sent = numbered(round, count);
        send_all(&topic, &sent).await;
        for (payload, incarnation) in ack_all(&mut consumer, &sent).await {
            incarnations.entry(incarnation).or_default().insert(payload);
        }
        if round < 5 {
            // In flight while the topic goes.
            topic.send(0, None, Some("in flight")).await;
            let held = take(&mut consumer, 1).await;
            topic.recreate(topic.partitions).await;
            topic.send(0, None, Some("notice")).await;
            let notice = BTreeSet::from(["notice".to_owned()]);
            ack_all(&mut consumer, &notice).await;
            assert_eq!(ack(&consumer, &held[..1]).await, [Settled::TooLate], "round {round}");
        }
    }
    // Each log has an incarnation of its own.
    assert!(incarnations.len() >= 6, "{:?}", incarnations.keys());
    assert!(consumer.health().unwrap().resets() >= 1 || incarnations.len() >= 6);
    let ends = topic.ends().await;
    topic.wait_committed(&ends).await;
    consumer.close().await.unwrap();

    // A restart afterwards finds nothing left, and nothing lost.
    let mut consumer = topic.open().await;
    topic.send(0, None, Some("last")).await;
    let last = take(&mut consumer, 1).await;
    assert_eq!((last.len(), text(&last[0])), (1, "last".to_owned()));
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_recreated_and_at_once_longer_than_before_is_read_from_its_start() {
    let topic = Topic::new(1).await;
    topic.fill(5).await;
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, 5).await;
    ack(&consumer, &taken).await;
    topic.wait_committed(&[5]).await;
    topic.recreate(1).await;
    let sent = numbered(1, 50);
    send_all(&topic, &sent).await;
    ack_all(&mut consumer, &sent).await;
    topic.wait_committed(&[50]).await;
    assert_eq!(consumer.health().unwrap().state(), SourceState::Up);
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_recreated_with_fewer_or_more_partitions_loses_nothing() {
    let mut topic = Topic::new(3).await;
    let mut consumer = topic.open().await;
    for (round, partitions) in [1, 4].into_iter().enumerate() {
        let sent = numbered(round, 30);
        send_all(&topic, &sent).await;
        ack_all(&mut consumer, &sent).await;
        topic.recreate(partitions).await;
        // A producer of the new topic: the old one knows the old number of partitions for a while.
        let group = topic.group.clone();
        topic = Topic::made(topic.bootstrap.clone(), topic.name.clone(), partitions);
        topic.group = group;
    }
    let sent = numbered(2, 40);
    send_all(&topic, &sent).await;
    ack_all(&mut consumer, &sent).await;
    topic.wait_committed(&topic.ends().await).await;
    consumer.close().await.unwrap();
}

/// A committed offset that does not identify the log is not used.
async fn an_offset_that_says_nothing_is_not_used(offset: i64, metadata: &str) {
    let topic = Topic::new(1).await;
    topic.fill(10).await;
    let (bootstrap, group, name) = (topic.bootstrap.clone(), topic.group.clone(), topic.name.clone());
    let metadata = metadata.to_owned();
    let commit = move || {
        let mut client = ClientConfig::new();
        let other: BaseConsumer =
            client.set("bootstrap.servers", bootstrap).set("group.id", group).create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&name, 0, Offset::Offset(offset)).unwrap();
        list.find_partition(&name, 0).unwrap().set_metadata(&metadata);
        other.commit(&list, CommitMode::Sync).unwrap();
    };
    tokio::task::spawn_blocking(commit).await.unwrap();
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, 10).await;
    assert_eq!(text(&taken[0]), "0:0");
    assert_eq!(consumer.health().unwrap().resets(), 1);
    ack(&consumer, &taken).await;
    topic.wait_committed(&[10]).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_of_a_topic_that_is_gone_is_not_used_though_it_is_in_the_log() {
    an_offset_that_says_nothing_is_not_used(7, "onceward 00000000000000000000000000000001 0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_behind_the_end_is_not_used() {
    an_offset_that_says_nothing_is_not_used(1000, "").await;
}

/// As after an election of a replica that had less: the same topic, and a log that is shorter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_truncated_under_a_consumer_is_read_from_its_start_as_another_one() {
    let mut broker = tokio::task::spawn_blocking(Kafka::start).await.unwrap();
    let topic = Topic::on(&broker, 1).await;
    topic.fill(30).await;
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, 30).await;
    ack(&consumer, &taken).await;
    topic.wait_committed(&[30]).await;
    let name = topic.name.clone();
    broker = tokio::task::spawn_blocking(move || {
        broker.kill();
        broker.empty_log(&name, 0);
        broker.start_again();
        broker
    })
    .await
    .unwrap();
    let sent = numbered(1, 10);
    send_all(&topic, &sent).await;
    let places = ack_all(&mut consumer, &sent).await;
    let before = &taken[0].message.position().unwrap().incarnation;
    assert!(places.iter().all(|(_, own)| **own != **before), "{before}: {places:?}");
    topic.wait_committed(&[10]).await;
    assert!(consumer.health().unwrap().resets() >= 1);
    consumer.close().await.unwrap();
    // The next one knows that log by the same name.
    let mut consumer = topic.open().await;
    topic.send(0, None, Some("later")).await;
    let later = take(&mut consumer, 1).await;
    assert_eq!(text(&later[0]), "later");
    let incarnation = later[0].message.position().unwrap().incarnation.to_string();
    assert!(places.iter().any(|(_, own)| *own == incarnation), "{incarnation}: {places:?}");
    consumer.close().await.unwrap();
    drop(broker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_retention_removed_before_they_were_read_are_counted() {
    let topic = Topic::new(1).await;
    topic.fill(10).await;
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, 10).await;
    ack(&consumer, &taken[..4]).await;
    topic.wait_committed(&[4]).await;
    consumer.close().await.unwrap();
    // While there was no consumer: 4, 5 and 6.
    topic.delete_before(0, 7).await;
    let mut consumer = topic.open().await;
    let rest = take(&mut consumer, 3).await;
    assert_eq!(text(&rest[0]), "0:7");
    let health = consumer.health().unwrap();
    assert_eq!(health.lost(), 3);
    ack(&consumer, &rest).await;
    topic.wait_committed(&[10]).await;

    // While the pipeline wanted nothing of the partition.
    let flow = consumer.flow().unwrap();
    let epoch = rest[0].tag.epoch;
    flow.pause(epoch);
    // The client takes that in with its next poll.
    tokio::time::sleep(Duration::from_millis(300)).await;
    topic.fill(1000).await;
    topic.delete_before(0, 1005).await;
    flow.resume(epoch);
    let rest = take(&mut consumer, 5).await;
    assert_eq!(text(&rest[rest.len() - 1]), "0:999");
    let read = u64::try_from(rest.len()).unwrap();
    until("they are counted", || health.lost() == 3 + 1000 - read).await;
    ack(&consumer, &rest).await;
    topic.wait_committed(&[1010]).await;
    assert_eq!(health.resets(), 0);
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_deleted_does_not_stop_the_others_and_comes_back() {
    let topic = Topic::new(1).await;
    let other = support::unique("gone");
    create(&topic.bootstrap, &other, 1).await;
    let other = Topic::made(topic.bootstrap.clone(), other, 1);
    let mut config = topic.config();
    config.topics.names.push(other.name.clone());
    let mut consumer = KafkaConsumer::open(config).await.unwrap();
    until("both are assigned", || consumer.assigned_partitions() == 2).await;
    let health = consumer.health().unwrap();
    other.delete().await;
    let says = |health: &onceward::telemetry::SourceHealth| match health.state() {
        SourceState::Down(reason) => reason.contains(&other.name),
        _ => false,
    };
    until("the health tells which topic is missing", || says(&health)).await;
    topic.fill(20).await;
    let taken = take(&mut consumer, 20).await;
    ack(&consumer, &taken).await;
    topic.wait_committed(&[20]).await;
    create(&topic.bootstrap, &other.name, 1).await;
    other.send(0, None, Some("back")).await;
    let back = take(&mut consumer, 1).await;
    assert_eq!(text(&back[0]), "back");
    until("it is up again", || health.state() == SourceState::Up).await;
    consumer.close().await.unwrap();
}
