//! Brokers without limits and brokers that violate the protocol: memory stays bounded, and errors name the cause.

use std::time::{Duration, Instant};

use lapin::Confirmation;
use lapin::types::AMQPValue;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use onceward::adapter::{Consumer, Defect};
use onceward::{Error, ErrorKind};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer};
use onceward_test_servers::lying::Liar;
use onceward_test_servers::lying::amqp::{self, Lie};
use onceward_test_servers::process::peak_memory;
use onceward_test_servers::rabbitmq::RabbitMq;

use crate::support::{Admin, Kind, take, text, unique};

/// Many times what a connection needs, and little beside what a lie announces.
const MOST_MEMORY: u64 = 300 << 20;

fn peak() -> u64 {
    peak_memory("self").unwrap()
}

async fn open(liar: &Liar) -> Result<RabbitmqConsumer, Error> {
    let mut config = RabbitmqConfig::new(format!("amqp://guest:guest@{}/%2f", liar.address()), "q");
    config.endpoint.connect_timeout = Duration::from_secs(4);
    RabbitmqConsumer::open(config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_the_broker_names_are_no_sizes_of_buffers() {
    for (channels, frame, heartbeat) in [
        (0, 0, 0),
        (2047, u32::MAX, 60),
        (u16::MAX, 1 << 31, u16::MAX),
        (2, 1, 1),
        (1, 4096, 60),
        (2047, 131_072, 0),
    ] {
        let liar = amqp::start(Lie::Tune(channels, frame, heartbeat));
        let mut consumer = open(&liar).await.unwrap();
        assert_eq!(text(&take(&mut consumer, 1).await[0]), "hello", "{channels} {frame} {heartbeat}");
    }
    assert!(peak() < MOST_MEMORY, "{} bytes", peak());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lies_before_the_login_are_errors() {
    for lie in [
        Lie::DeepProperties(20_000),
        Lie::LongStart(1 << 20),
        Lie::LongFrame(u32::MAX),
        Lie::LongFrame(1 << 30),
        Lie::HeartbeatsOnly,
    ] {
        let Err(error) = open(&amqp::start(lie)).await else { panic!("{lie:?} was believed") };
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{lie:?}: {error:?}");
        assert!(peak() < MOST_MEMORY, "{lie:?}: {} bytes", peak());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lies_behind_the_login_end_the_connection() {
    for lie in [
        Lie::LongMessage(1 << 63),
        Lie::LongMessage(1 << 40),
        Lie::NoContent,
        Lie::TooManyMessages,
        Lie::UnknownSubscription,
        Lie::Returns,
    ] {
        let liar = amqp::start(lie);
        let mut consumer = match open(&liar).await {
            Ok(consumer) => consumer,
            // It noticed while it asked for more channels.
            Err(error) => {
                assert!(error.is_retryable(), "{lie:?}: {error:?}");
                assert!(peak() < MOST_MEMORY, "{lie:?}: {} bytes", peak());
                continue;
            }
        };
        let connections = liar.accepted();
        // Nothing is received for a while: what arrives must not pile up.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let end = Instant::now() + Duration::from_secs(60);
        while liar.accepted() == connections && lie != Lie::Returns {
            assert!(Instant::now() < end, "{lie:?} is believed");
            let _ = tokio::time::timeout(Duration::from_millis(100), consumer.receive()).await;
        }
        assert!(peak() < MOST_MEMORY, "{lie:?}: {} bytes", peak());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_a_limit_for_frames_is_consumed() {
    let broker = tokio::task::spawn_blocking(|| RabbitMq::start_with("frame_max = 0", None)).await.unwrap();
    let url = format!("{}?frame_max=1100000", broker.url());
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let admin = Admin { connection, channel };
    let queue = unique("queue");
    admin.declare(&queue, Kind::Classic).await;
    admin.channel.confirm_select(Default::default()).await.unwrap();
    for (payload, bytes) in [("a", 10), ("large", 1_000_000), ("b", 10)] {
        let mut headers = lapin::types::FieldTable::default();
        headers.insert("h".into(), AMQPValue::LongString("x".repeat(bytes).into()));
        let properties = BasicProperties::default().with_headers(headers);
        let sent = admin.channel.basic_publish(
            "".into(),
            queue.as_str().into(),
            Default::default(),
            payload.as_bytes(),
            properties,
        );
        let confirmed = sent.await.unwrap().await.unwrap();
        assert!(matches!(confirmed, Confirmation::Ack(_)), "{payload}: {confirmed:?}");
    }
    let mut consumer = RabbitmqConsumer::open(RabbitmqConfig::new(broker.url(), &queue)).await.unwrap();
    let deliveries = take(&mut consumer, 3).await;
    let texts: Vec<_> = deliveries.iter().map(text).collect();
    assert_eq!(texts, ["a", "large", "b"]);
    let defects: Vec<_> = deliveries.iter().map(|delivery| delivery.message.defect().is_some()).collect();
    assert_eq!(defects, [false, true, false]);
    assert!(
        matches!(deliveries[1].message.defect(), Some(Defect::Malformed { what }) if what.contains("frame_max"))
    );
    assert!(peak() < MOST_MEMORY, "{} bytes", peak());
}
