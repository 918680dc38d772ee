//! The publisher on a real broker: what is confirmed can be read, what cannot be sent is an error.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use onceward::{Consumer, ErrorKind, Outgoing, Publisher};
use onceward_kafka::KafkaPublisher;
use support::{Topic, create_with, take, text};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_confirmed_is_read_back_as_it_was_sent_and_in_order() {
    let topic = Topic::new(1).await;
    let publisher = KafkaPublisher::new([&topic.bootstrap], &BTreeMap::new()).unwrap();
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
    let properties = BTreeMap::from([("message.timeout.ms".to_owned(), "3000".to_owned())]);
    let publisher = KafkaPublisher::new([&topic.bootstrap], &properties).unwrap();
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
        let properties = BTreeMap::from([("compression.type".to_owned(), codec.to_owned())]);
        let publisher = KafkaPublisher::new([&topic.bootstrap], &properties).unwrap();
        let message = Outgoing { payload: text_of(codec).into(), ..outgoing(&topic, 0) };
        let sent = publisher.publish(&[message]).await.remove(0);
        assert_eq!(sent.is_ok(), codec != "none", "{codec}: {sent:?}");
    }
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, codecs.len()).await;
    assert_eq!(taken.iter().map(text).collect::<Vec<_>>(), codecs.map(text_of));
    consumer.close().await.unwrap();
}

#[test]
fn a_weaker_confirm_is_refused() {
    for (name, value) in [("acks", "1"), ("request.required.acks", "0"), ("enable.idempotence", "false")] {
        let properties = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        assert!(KafkaPublisher::new(["127.0.0.1:1"], &properties).is_err(), "{name} = {value}");
    }
}
