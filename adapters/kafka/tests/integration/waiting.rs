//! Retry topics on a real broker: copies wait until they are due, are the same message, and hold up no other record.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use onceward::adapter::{Consumer, Delivery, Settled, Settlement};
use onceward::{OwnHeaders, OwnSecrets};
use onceward_kafka::{KafkaConfig, KafkaConsumer, RetryTopic};
use rdkafka::message::{Header, OwnedHeaders};

use crate::support::{self, Topic, create, create_with, take, text, until};

async fn with_retry_topic(topic: &Topic, delay: Duration) -> (KafkaConfig, String) {
    let retry = format!("{}.retry", topic.name);
    create(&topic.bootstrap, &retry, 1).await;
    let mut config = topic.config();
    config.topics.retry_topics = vec![RetryTopic::new(&retry, delay)];
    config.topics.own_headers = OwnHeaders::authenticated(OwnSecrets::new(b"0123456789abcdef").unwrap());
    (config, retry)
}

async fn settle(consumer: &KafkaConsumer, delivery: &Delivery, settlement: Settlement) {
    let settled = consumer.acker().settle(&[(delivery.tag, settlement)]).await;
    assert!(matches!(settled[..], [Ok(Settled::Done)]), "{settled:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_waits_until_it_is_due_as_the_same_message_and_its_original_holds_nothing_up() {
    const AFTER: Duration = Duration::from_secs(3);
    let topic = Topic::new(1).await;
    topic.fill(3).await;
    let (config, retry) = with_retry_topic(&topic, Duration::from_secs(2)).await;
    let mut consumer = KafkaConsumer::open(config.clone()).await.unwrap();
    assert!(consumer.capabilities().delayed_retry);
    let taken = take(&mut consumer, 3).await;
    let began = Instant::now();
    settle(&consumer, &taken[0], Settlement::Retry { after: AFTER }).await;
    settle(&consumer, &taken[1], Settlement::Retry { after: Duration::from_millis(300) }).await;
    settle(&consumer, &taken[2], Settlement::Ack).await;
    // The second waits in the process, since it is not worth the way.
    topic.wait_committed(&[1]).await;
    let soon = take(&mut consumer, 1).await;
    assert_eq!(text(&soon[0]), "0:1");
    settle(&consumer, &soon[0], Settlement::Ack).await;
    topic.wait_committed(&[3]).await;
    assert_eq!(consumer.is_idle().await, Some(false), "a copy waits");
    assert_eq!(config.connection.inspect_topic(&retry).await.unwrap().records, 1);

    // The next owner of the partition waits as well.
    consumer.close().await.unwrap();
    let mut consumer = KafkaConsumer::open(config).await.unwrap();
    let again = take(&mut consumer, 1).await;
    assert!(began.elapsed() >= AFTER, "after {:?}", began.elapsed());
    let (again, first) = (&again[0], &taken[0].message);
    assert_eq!(again.message.position(), first.position());
    assert_eq!((again.message.origin(), again.message.order_key()), (first.origin(), first.order_key()));
    assert_eq!((again.message.payload(), again.message.headers().len()), (first.payload(), 0));
    settle(&consumer, again, Settlement::Ack).await;
    let end = Instant::now() + support::LIMIT;
    while consumer.is_idle().await != Some(true) {
        assert!(Instant::now() < end, "never idle");
    }
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_its_topic_refuses_waits_in_the_process_and_its_original_holds_the_offset() {
    let topic = Topic::new(1).await;
    topic.send(0, None, Some(&"x".repeat(20_000))).await;
    let retry = format!("{}.retry", topic.name);
    create_with(&topic.bootstrap, &retry, 1, &[("max.message.bytes", "1000")]).await;
    let mut config = topic.config();
    config.topics.retry_topics = vec![RetryTopic::new(&retry, Duration::from_secs(1))];
    let mut consumer = KafkaConsumer::open(config.clone()).await.unwrap();
    let taken = take(&mut consumer, 1).await;
    settle(&consumer, &taken[0], Settlement::Retry { after: Duration::from_secs(1) }).await;
    let again = take(&mut consumer, 1).await;
    assert_eq!(again[0].message.position(), taken[0].message.position());
    assert_eq!(config.connection.inspect_topic(&retry).await.unwrap().records, 0);
    assert!(topic.committed().await[0] <= 0, "{:?}", topic.committed().await);
    settle(&consumer, &again[0], Settlement::Ack).await;
    topic.wait_committed(&[1]).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_wait_do_not_stop_what_is_due() {
    let topic = Topic::new(1).await;
    topic.fill(50).await;
    let (config, _) = with_retry_topic(&topic, Duration::from_secs(1)).await;
    let mut consumer = KafkaConsumer::open(config).await.unwrap();
    let taken = take(&mut consumer, 50).await;
    let after = Duration::from_secs(4);
    let batch: Vec<_> = taken.iter().map(|own| (own.tag, Settlement::Retry { after })).collect();
    assert!(consumer.acker().settle(&batch).await.iter().all(Result::is_ok));
    let began = Instant::now();
    topic.wait_committed(&[50]).await;
    topic.fill(10).await;
    let due = take(&mut consumer, 10).await;
    assert!(began.elapsed() < after, "what is due came after {:?}", began.elapsed());
    let again = take(&mut consumer, 50).await;
    for (own, first) in again.iter().zip(&taken) {
        assert_eq!(own.message.position(), first.message.position());
    }
    for delivery in due.iter().chain(&again) {
        settle(&consumer, delivery, Settlement::Ack).await;
    }
    until("partitions are assigned", || consumer.assigned_partitions() == 2).await;
    topic.wait_committed(&[60]).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_topic_that_does_not_answer_holds_up_its_own_records_only() {
    let topic = Topic::new(1).await;
    topic.fill(20).await;
    let (config, retry) = with_retry_topic(&topic, Duration::from_secs(1)).await;
    let mut consumer = KafkaConsumer::open(config).await.unwrap();
    let taken = take(&mut consumer, 20).await;
    let gone = Topic::made(topic.bootstrap.clone(), retry, 1);
    gone.delete().await;
    // One settle call with both: it does not wait for the copy.
    let after = Duration::from_secs(1);
    let retried = [19, 18].map(|index: usize| (taken[index].tag, Settlement::Retry { after }));
    let acked = taken[..18].iter().map(|own| (own.tag, Settlement::Ack));
    let batch: Vec<_> = retried.into_iter().chain(acked).collect();
    let settled = consumer.acker().settle(&batch).await;
    assert!(settled.iter().all(|own| matches!(own, Ok(Settled::Done))), "{settled:?}");
    topic.wait_committed(&[18]).await;
    // Again before an answer: no second copy.
    let settled = consumer.acker().settle(&retried).await;
    assert!(settled.iter().all(Result::is_ok), "{settled:?}");
    // Not confirmed: they wait in the process, and run from there, each when its own copy was given up.
    let again = take(&mut consumer, 2).await;
    assert_eq!(again.iter().map(text).collect::<BTreeSet<_>>(), ["0:18", "0:19"].map(Into::into).into());
    let acks: Vec<_> = again.iter().map(|own| (own.tag, Settlement::Ack)).collect();
    consumer.acker().settle(&acks).await;
    topic.wait_committed(&[20]).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_due_time_that_nobody_meant_holds_up_what_comes_after_it_for_a_bounded_time() {
    let topic = Topic::new(1).await;
    let (config, retry) = with_retry_topic(&topic, Duration::from_secs(1)).await;
    let retry = Topic::made(topic.bootstrap.clone(), retry, 1);
    // In the year 5138.
    let due = Header { key: "onceward-retry-due-ms", value: Some("99999999999999") };
    retry.send_with(0, None, Some("forged"), OwnedHeaders::new().insert(due)).await;
    retry.send(0, None, Some("behind it")).await;
    let mut consumer = KafkaConsumer::open(config).await.unwrap();
    let taken = take(&mut consumer, 2).await;
    assert_eq!(
        taken.iter().map(text).collect::<BTreeSet<_>>(),
        ["behind it", "forged"].map(Into::into).into()
    );
    consumer.close().await.unwrap();
}
