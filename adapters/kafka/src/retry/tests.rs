//! Copies of records: what their headers preserve, what a forged one may claim, and topics that do not confirm.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use onceward::dead_letter::HEADER_TIMESTAMP;
use onceward::{Message, Outgoing, OwnHeaders, OwnSecrets, Position};

use crate::config::TopicConfig;
use crate::connection::KafkaConnection;
use crate::publisher::KafkaPublisher;
use crate::retry::copy::{CopyHeaders, DUE, MAC, ORIGIN, POSITION};
use crate::retry::forwarder::RetryForwarder;
use crate::retry::topic::{RetryTopic, max_wait_in};

fn unreachable_cluster() -> KafkaConnection {
    KafkaConnection::new(["127.0.0.1:1"])
}

fn forwarder(own: OwnHeaders) -> RetryForwarder {
    forwarder_with(KafkaPublisher::open(unreachable_cluster()).unwrap(), own)
}

fn forwarder_with(publisher: KafkaPublisher, own_headers: OwnHeaders) -> RetryForwarder {
    let retry_topics = [("long", 60), ("short", 5)];
    let retry_topics = retry_topics.map(|(name, secs)| RetryTopic::new(name, Duration::from_secs(secs)));
    let topics =
        TopicConfig { retry_topics: retry_topics.into(), own_headers, ..TopicConfig::new(["orders"]) };
    RetryForwarder::new(publisher, &topics)
}

fn sealing(secret: &[u8; 16]) -> OwnHeaders {
    OwnHeaders::authenticated(OwnSecrets::new(secret).unwrap())
}

fn original() -> (Message, Position) {
    let position = Position { incarnation: "cluster/id:1".into(), partition: 3, offset: 9 };
    let message = Message::builder("pay")
        .header("a", "b")
        // Headers of a producer that have our names.
        .header(DUE, "1")
        .header(POSITION, "x:1:1")
        .position(position.clone())
        .origin("orders".into())
        .timestamp(UNIX_EPOCH + Duration::from_secs(7))
        .build();
    (message, position)
}

fn received(copy: &Outgoing) -> Vec<(Box<str>, Bytes)> {
    copy.headers.iter().map(|(name, value)| (name.as_str().into(), value.clone())).collect()
}

const LONGEST: Duration = Duration::from_secs(600);

#[test]
fn a_copy_is_sent_to_the_topic_that_fits_and_reads_back_as_its_original() {
    let (message, position) = original();
    for own in [sealing(b"0123456789abcdef"), OwnHeaders::trusted()] {
        let forwarder = forwarder(own.clone());
        assert_eq!(forwarder.copy(&message, Duration::from_secs(4)), None);
        let copy = forwarder.copy(&message, Duration::from_secs(59)).unwrap();
        assert_eq!(copy.destination, "short");
        assert_eq!(forwarder.copy(&message, LONGEST).unwrap().destination, "long");
        let mut headers = received(&copy);
        let read = CopyHeaders::extract(&mut headers, Some(b"pay"), LONGEST, &own);
        assert_eq!(read.timestamp, own.seals().then_some(UNIX_EPOCH + Duration::from_secs(7)));
        assert_eq!((read.origin.as_deref(), read.position), (Some("orders"), Some(position.clone())));
        assert!((Duration::from_secs(50)..=Duration::from_secs(59)).contains(&read.wait), "{:?}", read.wait);
        assert_eq!(headers, [("a".into(), Bytes::from("b"))]);
    }
}

#[test]
fn a_copy_without_a_valid_seal_has_no_position() {
    let (message, _) = original();
    let own = sealing(b"0123456789abcdef");
    let copy = forwarder(own.clone()).copy(&message, Duration::from_secs(59)).unwrap();
    let changed = |name: &str, value: &str| {
        let mut headers = received(&copy);
        headers
            .iter_mut()
            .filter(|(own, _)| **own == *name)
            .for_each(|(_, own)| *own = value.to_owned().into());
        headers
    };
    let twice = [received(&copy), vec![(POSITION.into(), Bytes::from("x:1:1"))]].concat();
    let first = [vec![(POSITION.into(), Bytes::from("x:1:1"))], received(&copy)].concat();
    let forged = [
        changed(DUE, "99"),
        changed(ORIGIN, "others"),
        changed(POSITION, "cluster/id:1:3:8"),
        changed(HEADER_TIMESTAMP, "8000"),
        changed(MAC, "1.0.0"),
        twice,
        first,
    ];
    let mut as_sent = received(&copy);
    for (mut headers, payload) in
        forged.into_iter().map(|headers| (headers, "pay")).chain([(as_sent.clone(), "other")])
    {
        let read = CopyHeaders::extract(&mut headers, Some(payload.as_bytes()), LONGEST, &own);
        assert_eq!(read, CopyHeaders::default(), "it is an ordinary record");
    }
    let other = sealing(b"fedcba9876543210");
    assert_eq!(CopyHeaders::extract(&mut as_sent, Some(b"pay"), LONGEST, &other), CopyHeaders::default());
}

#[test]
fn without_a_secret_a_copy_only_has_its_due_time() {
    let (message, _) = original();
    let copy = forwarder(OwnHeaders::default()).copy(&message, Duration::from_secs(59)).unwrap();
    let mut headers = received(&copy);
    let read = CopyHeaders::extract(&mut headers, Some(b"pay"), LONGEST, &OwnHeaders::default());
    assert_eq!((read.origin, read.position, read.timestamp), (None, None, None));
    assert!(read.wait > Duration::from_secs(50), "{:?}", read.wait);
}

#[test]
fn an_invalid_due_time_is_due_at_once() {
    let own = OwnHeaders::default();
    let (forwarder, message) = (forwarder(own.clone()), Message::builder("pay").build());
    assert_eq!(forwarder.copy(&message, Duration::MAX), None, "it waits in the process");
    let longest = max_wait_in(&forwarder.topics, "short");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    for due in ["99999999999999".to_owned(), u64::MAX.to_string(), (now + 170_000).to_string(), "-1".into()] {
        let mut headers = vec![(DUE.into(), Bytes::from(due.clone()))];
        assert_eq!(
            CopyHeaders::extract(&mut headers, Some(b""), longest, &own).wait,
            Duration::ZERO,
            "{due}"
        );
    }
    let mut headers = vec![(DUE.into(), Bytes::from((now + 90_000).to_string()))];
    assert!(CopyHeaders::extract(&mut headers, Some(b""), longest, &own).wait > Duration::from_secs(80));
}

#[tokio::test]
async fn a_topic_that_does_not_confirm_is_not_used_and_records_wait_in_the_process() {
    let mut connection = unreachable_cluster();
    connection.properties.insert("message.timeout.ms".into(), "100".into());
    let forwarder = forwarder_with(KafkaPublisher::open(connection).unwrap(), OwnHeaders::default());
    let (message, after) = (Message::builder("pay").build(), Duration::from_secs(6));
    let copy = forwarder.copy(&message, after).unwrap();
    assert!(!forwarder.publish(&copy).await);
    assert_eq!(forwarder.copy(&message, after), None);
    assert!(forwarder.copy(&message, Duration::from_secs(60)).is_some(), "another topic");
}

#[test]
fn a_record_that_is_no_copy_has_no_wait_and_keeps_its_headers() {
    let own = vec![("a".into(), Bytes::from("b")), (DUE.into(), Bytes::from_static(b"\xff"))];
    let mut headers = own.clone();
    let read = CopyHeaders::extract(&mut headers, Some(b""), Duration::MAX, &OwnHeaders::default());
    assert_eq!(read, CopyHeaders::default());
    assert_eq!(headers, own);
}
