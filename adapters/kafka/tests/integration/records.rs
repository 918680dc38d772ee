//! Records of all kinds on a real broker, and the offsets committed for them.

use std::time::Duration;

use onceward::adapter::{Consumer, Settled, Settlement};
use onceward_kafka::KafkaConsumer;
use onceward_test_servers::kafka::Kafka;
use rdkafka::message::{Header, OwnedHeaders};

use crate::support::{Topic, take, text, transact, until};

async fn ack(consumer: &KafkaConsumer, deliveries: &[onceward::adapter::Delivery]) {
    let batch: Vec<_> = deliveries.iter().map(|delivery| (delivery.tag, Settlement::Ack)).collect();
    let results = consumer.acker().settle(&batch).await;
    assert!(results.iter().all(|result| matches!(result, Ok(Settled::Done))), "{results:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn null_keys_tombstones_and_headers_that_are_not_text_pass() {
    let topic = Topic::new(1).await;
    topic.send(0, None, Some("no key")).await;
    topic.send(0, Some("gone"), None).await;
    let headers = OwnedHeaders::new()
        .insert(Header { key: "bytes", value: Some(&[0xff_u8, 0x00, 0xfe][..]) })
        .insert(Header { key: "null", value: None::<&[u8]> })
        .insert(Header { key: "message-id", value: Some("m-1") });
    topic.send_with(0, Some(""), Some("headers"), headers).await;
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, 3).await;
    let [plain, tombstone, headers] = &taken[..] else { panic!("{taken:?}") };
    assert_eq!((plain.message.order_key(), text(plain).as_str()), (None, "no key"));
    assert_eq!(tombstone.message.order_key().unwrap(), "gone");
    assert!(tombstone.message.payload().is_empty());
    assert_eq!(headers.message.header("bytes").unwrap()[..], [0xff, 0x00, 0xfe]);
    assert!(headers.message.header("null").unwrap().is_empty());
    assert_eq!((headers.message.id(), headers.message.order_key().unwrap().len()), (Some(&b"m-1"[..]), 0));
    assert!(headers.message.defect().is_none());
    assert_eq!(headers.message.position().unwrap().offset, 2);
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_committed_offset_waits_for_a_slow_message_and_others_do_not() {
    let topic = Topic::new(1).await;
    topic.fill(100).await;
    let mut consumer = topic.open().await;
    let mut taken = take(&mut consumer, 100).await;
    let slow = taken.remove(3);
    ack(&consumer, &taken).await;
    topic.wait_committed(&[3]).await;
    drop(consumer);
    // As after a crash: from the incomplete one on.
    let mut consumer = topic.open().await;
    let again = take(&mut consumer, 97).await;
    assert_eq!(text(&again[0]), text(&slow));
    ack(&consumer, &again).await;
    topic.wait_committed(&[100]).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_retried_comes_again_in_place_and_holds_the_offset() {
    let topic = Topic::new(1).await;
    topic.fill(5).await;
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, 5).await;
    let retry = Settlement::Retry { after: Duration::ZERO };
    let batch: Vec<_> = [4, 1, 2].map(|index: usize| (taken[index].tag, retry)).into();
    consumer.acker().settle(&batch).await;
    let again = take(&mut consumer, 3).await;
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), ["0:1", "0:2", "0:4"]);
    let rest: Vec<_> =
        taken.into_iter().filter(|own| !again.iter().any(|other| text(own) == text(other))).collect();
    ack(&consumer, &rest).await;
    topic.wait_committed(&[1]).await;
    ack(&consumer, &again).await;
    topic.wait_committed(&[5]).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_transactions_and_their_markers_hold_nothing_up() {
    let topic = Topic::new(1).await;
    transact(&topic, &[true, false, true]).await;
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, 10).await;
    assert!(taken.iter().all(|delivery| !text(delivery).starts_with('1')), "an aborted record came");
    let (last, others) = taken.split_last().unwrap();
    ack(&consumer, others).await;
    // Five records, a marker, five aborted, a marker, five records, a marker: the last record is 16.
    topic.wait_committed(&[16]).await;
    assert_eq!(consumer.is_idle().await, Some(true));
    ack(&consumer, std::slice::from_ref(last)).await;
    topic.wait_committed(&[18]).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_with_nothing_but_aborted_records_is_at_its_end_and_without_lag() {
    let topic = Topic::new(1).await;
    transact(&topic, &[false, false]).await;
    let consumer = topic.open().await;
    // No caller asks whether it is idle.
    topic.wait_committed(&[12]).await;
    drop(consumer);
    let mut consumer = topic.open().await;
    transact(&topic, &[false]).await;
    assert_eq!(consumer.is_idle().await, Some(true));
    topic.send(0, None, Some("a record")).await;
    let idle = consumer.is_idle().await;
    let taken = take(&mut consumer, 1).await;
    assert_eq!((idle, text(&taken[0]).as_str()), (Some(false), "a record"));
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_a_topic_that_was_recreated_are_new_ones() {
    let topic = Topic::new(1).await;
    let mut incarnations = Vec::new();
    for _ in 0..2 {
        topic.send(0, None, Some("first")).await;
        let mut consumer = topic.open().await;
        let taken = take(&mut consumer, 1).await;
        let position = taken[0].message.position().unwrap().clone();
        assert_eq!((position.partition, position.offset), (0, 0));
        incarnations.push(position.incarnation);
        consumer.close().await.unwrap();
        topic.recreate(1).await;
    }
    assert_ne!(incarnations[0], incarnations[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retention_has_taken_is_passed_and_the_rest_comes() {
    let topic = Topic::new(1).await;
    topic.fill(10).await;
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, 10).await;
    ack(&consumer, &taken[..4]).await;
    topic.wait_committed(&[4]).await;
    consumer.close().await.unwrap();
    // What the group has committed is no longer in the log.
    topic.delete_before(0, 7).await;
    let mut consumer = topic.open().await;
    let rest = take(&mut consumer, 3).await;
    assert_eq!(rest.iter().map(text).collect::<Vec<_>>(), ["0:7", "0:8", "0:9"]);
    ack(&consumer, &rest).await;
    topic.wait_committed(&[10]).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_starts_at_the_end_skips_nothing_that_comes_after_the_first_assignment() {
    let topic = Topic::new(1).await;
    topic.fill(3).await;
    let mut config = topic.config();
    config.connection.properties.insert("auto.offset.reset".into(), "latest".into());
    let consumer = KafkaConsumer::open(config.clone()).await.unwrap();
    until("partitions are assigned", || consumer.assigned_partitions() == 1).await;
    // As after a crash before the first commit.
    drop(consumer);
    topic.send(0, None, Some("meanwhile")).await;
    let mut consumer = KafkaConsumer::open(config).await.unwrap();
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "meanwhile");
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_of_three_poll_intervals_keeps_its_partition_and_the_buffer_its_bound() {
    let topic = Topic::new(1).await;
    topic.fill(2000).await;
    let mut config = topic.config();
    config.connection.properties.insert("session.timeout.ms".into(), "3000".into());
    config.connection.properties.insert("max.poll.interval.ms".into(), "3000".into());
    config.topics.drain_timeout = Some(Duration::from_secs(1));
    config.topics.buffer_messages = 100;
    let mut consumer = KafkaConsumer::open(config).await.unwrap();
    let held = take(&mut consumer, 1).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    ack(&consumer, &held).await;
    let rest = take(&mut consumer, 2000 - held.len()).await;
    let expected: Vec<_> = (0..2000).map(|number| format!("0:{number}")).collect();
    assert_eq!(held.iter().chain(&rest).map(text).collect::<Vec<_>>(), expected);
    ack(&consumer, &rest).await;
    topic.wait_committed(&[2000]).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_and_comes_back_loses_nothing() {
    let mut broker = tokio::task::spawn_blocking(Kafka::start).await.unwrap();
    let topic = Topic::on(&broker, 2).await;
    topic.fill(100).await;
    let mut consumer = topic.open().await;
    let before = take(&mut consumer, 200).await;
    broker = tokio::task::spawn_blocking(move || {
        broker.kill();
        broker.start_again();
        broker
    })
    .await
    .unwrap();
    // The group decides whether the assignment survives the restart; if not, uncommitted records are redelivered.
    let batch: Vec<_> = before.iter().map(|delivery| (delivery.tag, Settlement::Ack)).collect();
    consumer.acker().settle(&batch).await;
    topic.fill(100).await;
    let mut seen: std::collections::BTreeSet<_> = before.iter().map(text).collect();
    let mut offsets = std::collections::HashSet::new();
    while offsets.len() < 200 {
        let taken = take(&mut consumer, 1).await;
        let new = taken.iter().map(|delivery| delivery.message.position().unwrap().clone());
        offsets.extend(new.filter(|position| position.offset >= 100));
        seen.extend(taken.iter().map(text));
        let batch: Vec<_> = taken.iter().map(|own| (own.tag, Settlement::Ack)).collect();
        consumer.acker().settle(&batch).await;
    }
    assert_eq!(seen.len(), 200);
    until("partitions are assigned", || consumer.assigned_partitions() == 2).await;
    topic.wait_committed(&[200, 200]).await;
    consumer.close().await.unwrap();
    drop(broker);
}
