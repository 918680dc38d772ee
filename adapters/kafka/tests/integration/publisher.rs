//! The publisher on a real broker: confirmed messages can be read, others are errors.

use bytes::Bytes;
use onceward::adapter::Consumer;
use onceward::{ErrorKind, Outgoing, Publisher};
use onceward_kafka::{KafkaConnection, KafkaPublisher};
use onceward_test_servers::kafka::Kafka;
use rdkafka::message::{Header, Headers, Message as _, OwnedHeaders};

use crate::support::{self, Topic, create_with, take, text};

fn outgoing(topic: &Topic, number: usize) -> Outgoing {
    Outgoing {
        destination: topic.name.clone(),
        id: format!("id-{number}"),
        order_key: Some(Bytes::from_static(b"\xffkey")),
        headers: vec![("onceward-reason".into(), Bytes::from_static(b"\xfe\x00"))],
        payload: format!("letter {number}").into(),
        ..Outgoing::default()
    }
}

fn publisher_with<const N: usize>(
    bootstrap: &str,
    properties: [(&str, &str); N],
) -> Result<KafkaPublisher, onceward::Error> {
    let mut connection = KafkaConnection::new([bootstrap]);
    connection.properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    KafkaPublisher::open(connection)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_confirmed_is_read_back_as_it_was_sent_and_in_order() {
    let topic = Topic::new(1).await;
    let publisher = publisher_with(&topic.bootstrap, []).unwrap();
    let batch: Vec<_> = (0..500).map(|number| outgoing(&topic, number)).collect();
    assert!(publisher.publish(&batch).await.iter().all(Result::is_ok));
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, 500).await;
    for (number, delivery) in taken.iter().enumerate() {
        assert_eq!(text(delivery), format!("letter {number}"));
        assert_eq!(delivery.message.id(), Some(format!("id-{number}").as_bytes()));
        assert_eq!(delivery.message.order_key().unwrap()[..], *b"\xffkey");
        assert_eq!(delivery.message.header("onceward-reason").unwrap()[..], *b"\xfe\x00");
    }
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_message_fails_alone() {
    let topic = Topic::new(1).await;
    let publisher = publisher_with(&topic.bootstrap, [("message.timeout.ms", "3000")]).unwrap();
    let mut batch: Vec<_> = (0..4).map(|number| outgoing(&topic, number)).collect();
    batch[1].destination = "no-such-topic".into();
    batch[2].headers[0].0 = "nul\0name".into();
    let results = publisher.publish(&batch).await;
    let kinds: Vec<_> =
        results.iter().map(|result| result.as_ref().err().map(onceward::Error::kind)).collect();
    assert!(matches!(kinds[1], Some(ErrorKind::Config | ErrorKind::Timeout)), "{results:?}");
    assert_eq!((kinds[0], kinds[2], kinds[3]), (None, Some(ErrorKind::Corrupt), None), "{results:?}");
}

/// Of a hundred kilobytes that compress well the broker takes no more than ten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_codec_compresses_what_is_published_and_is_read_back() {
    let topic = Topic::new(1).await;
    let name = support::unique("small");
    create_with(&topic.bootstrap, &name, 1, &[("max.message.bytes", "10000")]).await;
    let topic = Topic::made(topic.bootstrap, name, 1);
    let text_of = |codec: &str| format!("{codec} {}", "0123456789".repeat(10_000));
    let codecs = ["gzip", "snappy", "lz4", "zstd"];
    for codec in codecs.into_iter().chain(["none"]) {
        let publisher = publisher_with(&topic.bootstrap, [("compression.type", codec)]).unwrap();
        let message = Outgoing { payload: text_of(codec).into(), ..outgoing(&topic, 0) };
        let sent = publisher.publish(&[message]).await.remove(0);
        assert_eq!(sent.is_ok(), codec != "none", "{codec}: {sent:?}");
    }
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, codecs.len()).await;
    assert_eq!(taken.iter().map(text).collect::<Vec<_>>(), codecs.map(text_of));
    consumer.close().await.unwrap();
}

/// Everything that a record can have, sent on as letters are: the form it came in, and headers of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn null_headers_tombstones_timestamps_and_ids_survive_and_our_id_stands_beside_theirs() {
    let topic = Topic::new(1).await;
    let headers = OwnedHeaders::new()
        .insert(Header { key: "twice", value: Some("a") })
        .insert(Header { key: "null", value: None::<&[u8]> })
        .insert(Header { key: "empty", value: Some("") })
        .insert(Header { key: "twice", value: Some(&[0xff_u8, 0][..]) })
        .insert(Header { key: "onceward-reason", value: Some("stale") })
        .insert(Header { key: "message-id", value: Some("m-1") });
    topic.send_with(0, Some("gone"), None, headers).await;
    let mut consumer = topic.open().await;
    let first = take(&mut consumer, 1).await.remove(0).message;
    let to = support::unique("copy");
    create_with(&topic.bootstrap, &to, 1, &[]).await;
    let to = Topic::made(topic.bootstrap.clone(), to, 1);
    let kept = first.headers().filter(|(name, _)| !name.starts_with("onceward-"));
    let mut headers: Vec<_> = kept.map(|(name, value)| (name.to_owned(), value.clone())).collect();
    headers.push(("onceward-reason".to_owned(), Bytes::from_static(b"permanent")));
    let letter = Outgoing {
        destination: to.name.clone(),
        id: String::from_utf8(first.id().unwrap().to_vec()).unwrap(),
        own_id: "own-1".into(),
        order_key: first.order_key().cloned(),
        headers,
        payload: first.payload().clone(),
        null_payload: first.has_null_payload(),
        timestamp: first.timestamp(),
        native: first.native().cloned(),
    };
    let publisher = publisher_with(&topic.bootstrap, []).unwrap();
    assert!(publisher.publish(&[letter]).await[0].is_ok());
    let record = to.raw().await;
    assert_eq!(record.payload(), None);
    assert_eq!(record.key(), Some(&b"gone"[..]));
    let ms = first.timestamp().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    assert_eq!(record.timestamp().to_millis(), i64::try_from(ms).ok());
    let read: Vec<_> = record.headers().unwrap().iter().map(|own| (own.key, own.value)).collect();
    let expected: [(&str, Option<&[u8]>); 7] = [
        ("twice", Some(b"a")),
        ("null", None),
        ("empty", Some(b"")),
        ("twice", Some(&[0xff, 0])),
        ("message-id", Some(b"m-1")),
        ("onceward-reason", Some(b"permanent")),
        ("onceward-id", Some(b"own-1")),
    ];
    assert_eq!(read, expected);
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_consumed_can_be_sent_on_and_what_never_fits_says_so_alone() {
    let topic = Topic::new(1).await;
    let publisher = publisher_with(&topic.bootstrap, []).unwrap();
    // More than librdkafka's own limit, less than the broker's.
    let large = Outgoing { payload: vec![b'x'; 1_030_000].into(), ..outgoing(&topic, 0) };
    let huge = Outgoing { payload: vec![b'x'; 1_100_000].into(), ..outgoing(&topic, 1) };
    let sent = publisher.publish(&[outgoing(&topic, 2), large, huge, outgoing(&topic, 3)]).await;
    let kinds: Vec<_> = sent.iter().map(|own| own.as_ref().err().map(onceward::Error::kind)).collect();
    assert_eq!(kinds, [None, None, Some(ErrorKind::TooLarge), None], "{sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_topic_is_created_though_the_broker_would() {
    let broker = tokio::task::spawn_blocking(|| Kafka::start_with("auto.create.topics.enable=true")).await;
    let broker = broker.unwrap();
    let topic = Topic::on(&broker, 1).await;
    let publisher = publisher_with(&topic.bootstrap, [("message.timeout.ms", "3000")]).unwrap();
    let mistyped = Outgoing { destination: "mistyped".into(), ..outgoing(&topic, 0) };
    assert!(publisher.publish(&[mistyped]).await[0].is_err());
    assert!(topic.config().connection.inspect_topic("mistyped").await.is_err(), "it was created");
    drop(broker);
}

#[test]
fn a_weaker_confirm_is_refused() {
    for (name, value) in [("acks", "1"), ("request.required.acks", "0"), ("enable.idempotence", "false")] {
        assert!(publisher_with("127.0.0.1:1", [(name, value)]).is_err(), "{name} = {value}");
    }
}
