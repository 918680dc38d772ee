//! Errors at the start and during a run, lost leases, flow control, and a server that goes away.

use std::time::Duration;

use bytes::Bytes;
use google_cloud_pubsub::model::Message;
use onceward::adapter::{Consumer, Delivery, Settled, Settlement};
use onceward::telemetry::SourceState;
use onceward::{ErrorKind, Outgoing, Publisher};
use onceward_pubsub::{PubsubConfig, PubsubConsumer, PubsubPublisher};
use onceward_test_servers::pubsub::Pubsub;
use serde_json::json;

use crate::support::{self, Place, until};

const LONG: Duration = Duration::from_secs(120);
const UNAVAILABLE: u8 = 14;
const PERMISSION_DENIED: u8 = 7;

fn numbered(count: usize) -> impl Iterator<Item = Message> {
    (0..count).map(|number| Message::new().set_data(number.to_string()))
}

async fn receive(consumer: &mut PubsubConsumer) -> Vec<Delivery> {
    tokio::time::timeout(LONG, consumer.receive()).await.unwrap().unwrap().unwrap()
}

/// The consumer of a server of its own.
async fn alone(server: &Pubsub) -> (String, PubsubConsumer) {
    let topic = server.topic("orders");
    let mut config = PubsubConfig::new(server.subscription("orders", &topic));
    config.endpoint = support::endpoint(server);
    config.subscription.ack_deadline = Duration::from_secs(10);
    (topic, PubsubConsumer::open(config).await.unwrap())
}

async fn publish(server: &Pubsub, topic: &str, id: &str) -> Result<(), onceward::Error> {
    let publisher = PubsubPublisher::open(support::endpoint(server)).await.unwrap();
    publisher.publish(&[outgoing(topic, id)]).await.remove(0)
}

fn outgoing(topic: &str, id: &str) -> Outgoing {
    let (destination, id) = (topic.to_owned(), id.to_owned());
    let order_key = Some(Bytes::from_static(b"key"));
    Outgoing { destination, id, order_key, payload: Bytes::from_static(b"x"), ..Outgoing::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_must_fix_is_said_when_the_consumer_is_opened() {
    let place = Place::create("start", &json!({}));
    let kind = async |config| PubsubConsumer::open(config).await.map(drop).unwrap_err().kind();

    let mut missing = place.config();
    missing.subscription.name += "-missing";
    assert_eq!(kind(missing).await, ErrorKind::Config);

    let mut ordered = place.config();
    ordered.subscription.ordered = true;
    assert_eq!(kind(ordered).await, ErrorKind::Config);

    let mut away = place.config();
    away.endpoint = support::at("http://127.0.0.1:1".to_owned());
    assert_eq!(kind(away).await, ErrorKind::Unavailable);

    let status = PubsubConsumer::open(place.config()).await.unwrap().subscription_status().clone();
    assert!(status.is_known() && status.topic == Some(place.topic.clone()) && !status.ordered, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_ends_the_start_and_interrupts_a_run() {
    let server = Pubsub::start();
    server.fail("StreamingPull", PERMISSION_DENIED);
    let (topic, mut consumer) = alone(&server).await;
    let error = tokio::time::timeout(LONG, consumer.receive()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let health = consumer.health().unwrap();
    assert!(matches!(health.state(), SourceState::Down(reason) if reason.contains("access denied")));

    server.succeed("StreamingPull");
    publish(&server, &topic, "1").await.unwrap();
    let first = loop {
        // The error of each attempt before.
        match tokio::time::timeout(LONG, consumer.receive()).await.unwrap() {
            Ok(batch) => break batch.unwrap().remove(0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Denied),
        }
    };
    assert_eq!(health.state(), SourceState::Up);
    consumer.acker().settle(&[(first.tag, Settlement::Ack)]).await.remove(0).unwrap();

    // Later it is waited for.
    server.fail("StreamingPull", PERMISSION_DENIED);
    server.stop();
    server.start_again();
    until(LONG, "the source is down", || matches!(health.state(), SourceState::Down(_))).await;
    server.succeed("StreamingPull");
    publish(&server, &topic, "2").await.unwrap();
    assert_eq!(receive(&mut consumer).await.len(), 1);
    assert_eq!(health.state(), SourceState::Up);
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_is_reported_and_returned_to() {
    let server = Pubsub::start();
    let (topic, mut consumer) = alone(&server).await;
    publish(&server, &topic, "1").await.unwrap();
    let held = receive(&mut consumer).await.remove(0);
    let health = consumer.health().unwrap();
    server.stop();
    until(
        LONG,
        "the source is down",
        || matches!(health.state(), SourceState::Down(reason) if reason.contains("not reachable")),
    )
    .await;
    server.start_again();
    publish(&server, &topic, "2").await.unwrap();
    let next = receive(&mut consumer).await.remove(0);
    assert_eq!((health.state(), health.reconnects()), (SourceState::Up, 1));
    let acks = [(held.tag, Settlement::Ack), (next.tag, Settlement::Ack)];
    assert!(consumer.acker().settle(&acks).await.into_iter().all(|answer| answer.unwrap() == Settled::Done));
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_held_than_flow_control_allows() {
    let place = Place::create("flow", &json!({}));
    place.publish(numbered(10)).await;
    let mut config = place.config();
    config.subscription.max_outstanding_messages = 3;
    let mut consumer = PubsubConsumer::open(config).await.unwrap();
    let acker = consumer.acker();
    let (mut held, mut acked) = (Vec::new(), 0);
    while acked < 10 {
        while held.len() < 3.min(10 - acked) {
            held.extend(receive(&mut consumer).await);
        }
        assert!(held.len() <= 3, "{held:?}");
        let early = tokio::time::timeout(Duration::from_millis(200), consumer.receive()).await;
        assert!(early.is_err(), "{early:?}");
        let acks: Vec<_> = held.drain(..).map(|delivery| (delivery.tag, Settlement::Ack)).collect();
        acked += acks.len();
        acker.settle(&acks).await;
    }
    until(LONG, "all are acked", || place.is_empty()).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_larger_than_the_byte_limit_is_received_alone() {
    let place = Place::create("bytes", &json!({}));
    place.publish((0..3).map(|_| Message::new().set_data(vec![b'x'; 10_000]))).await;
    let mut config = place.config();
    config.subscription.max_outstanding_bytes = 5_000;
    let mut consumer = PubsubConsumer::open(config).await.unwrap();
    for _ in 0..3 {
        let held = receive(&mut consumer).await;
        assert_eq!(held.len(), 1);
        consumer.acker().settle(&[(held[0].tag, Settlement::Ack)]).await.remove(0).unwrap();
    }
    until(LONG, "all are acked", || place.is_empty()).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_that_exactly_once_delivery_refuses_settles_nothing() {
    let server = Pubsub::start();
    let topic = server.topic("orders");
    let properties = json!({"enableExactlyOnceDelivery": true});
    let subscription = server.subscription_with("orders", &topic, &properties);
    let mut config = PubsubConfig::new(&subscription);
    config.endpoint = support::endpoint(&server);
    config.subscription.ack_deadline = Duration::from_secs(10);
    let mut consumer = PubsubConsumer::open(config).await.unwrap();
    // The lease ends although the message is held.
    server.fail("ModifyAckDeadline", UNAVAILABLE);
    publish(&server, &topic, "1").await.unwrap();
    let old = receive(&mut consumer).await.remove(0);
    let new = receive(&mut consumer).await.remove(0);
    server.succeed("ModifyAckDeadline");
    let settle = async |tag| consumer.acker().settle(&[(tag, Settlement::Ack)]).await.remove(0);
    assert_eq!(settle(old.tag).await.unwrap(), Settled::TooLate);
    assert_eq!(
        server.depth(&subscription).0 + server.depth(&subscription).1,
        2,
        "one message, which is leased"
    );
    assert_eq!(settle(new.tag).await.unwrap(), Settled::Done);
    assert_eq!(server.depth(&subscription), (0, 0));
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_confirmation_is_a_timeout_and_its_outcome_is_kept() {
    let server = Pubsub::start();
    let topic = server.topic("orders");
    let subscription =
        server.subscription_with("orders", &topic, &json!({"enableExactlyOnceDelivery": true}));
    let mut config = PubsubConfig::new(&subscription);
    config.endpoint = support::endpoint(&server);
    config.subscription.call_timeout = Duration::from_millis(500);
    let mut consumer = PubsubConsumer::open(config).await.unwrap();
    publish(&server, &topic, "1").await.unwrap();
    let held = receive(&mut consumer).await.remove(0);
    server.fail("Acknowledge", UNAVAILABLE);
    let acker = consumer.acker();
    let settle = async || acker.settle(&[(held.tag, Settlement::Ack)]).await.remove(0);
    assert_eq!(settle().await.unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(acker.settle(&[(held.tag, Settlement::Abandon)]).await.remove(0).unwrap(), Settled::TooLate);
    server.succeed("Acknowledge");
    let mut outcome = settle().await;
    for _ in 0..100 {
        if outcome.is_ok() {
            break;
        }
        outcome = settle().await;
    }
    assert_eq!(outcome.unwrap(), Settled::Done);
    assert_eq!(server.depth(&subscription), (0, 0));
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_fails_does_not_block_its_ordering_key() {
    let server = Pubsub::start();
    let topic = server.topic("orders");
    let publisher = PubsubPublisher::open(support::endpoint(&server)).await.unwrap();
    let batch = [outgoing(&topic, "1"), outgoing(&topic, "2")];
    server.fail("Publish", PERMISSION_DENIED);
    for result in publisher.publish(&batch).await {
        assert!(matches!(result.unwrap_err().kind(), ErrorKind::Denied | ErrorKind::Unavailable));
    }
    server.succeed("Publish");
    for result in publisher.publish(&batch).await {
        result.unwrap();
    }
    let missing = publisher.publish(&[outgoing(&format!("{topic}-missing"), "3")]).await.remove(0);
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::Config);
    let unnamed = publisher.publish(&[outgoing("orders", "4")]).await.remove(0);
    assert_eq!(unnamed.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_invalid_fails_alone() {
    let server = Pubsub::start();
    let topic = server.topic("orders");
    let publisher = PubsubPublisher::open(support::endpoint(&server)).await.unwrap();
    server.fail("Publish", 3);
    let batch = [outgoing(&topic, "1"), outgoing(&topic, "2")];
    for result in publisher.publish(&batch).await {
        // Each was sent alone, and refused alone: none is left as a victim of the other.
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
