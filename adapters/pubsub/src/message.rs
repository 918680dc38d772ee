//! Converts messages of Pub/Sub to [`Message`]s: [`to_message`].

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use google_cloud_pubsub::model::Message as Received;
use onceward::adapter::Defect;
use onceward::dead_letter::{HEADER_GENERATION, HEADER_ID, HEADER_MESSAGE_ID};
use onceward::own_headers::LETTER;
use onceward::{Message, OwnHeaders};

use crate::format::facts::{self, is_fact};
use crate::format::outgoing::EMPTY;
use crate::format::packed_headers::{is_packed, unpack};

/// Converts a message received from the subscription `origin`, delivered for the `attempt`th time where Pub/Sub counts.
///
/// Packed headers are read from anybody: they are how Pub/Sub carries bytes and names that it does not support, and
/// express nothing that a plain message could not. Those with our names count only if they are trusted.
pub(crate) fn to_message(
    received: Received,
    attempt: Option<i32>,
    origin: Arc<str>,
    own_headers: &OwnHeaders,
) -> Message {
    let (headers, defect) = producer_headers(&received);
    let parts = || headers.iter().map(|(name, value)| (name.as_str(), &value[..]));
    let is_trusted = own_headers.believes_parts(&LETTER, parts, Some(&received.data));
    let own = |wanted: &str| {
        let (_, value) = parts().find(|(name, _)| *name == wanted && is_trusted)?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    // Pub/Sub assigns a new id to each copy: an id of ours takes precedence.
    let (own_id, given) = (own(HEADER_ID), own(HEADER_MESSAGE_ID));
    let is_letter = own(HEADER_GENERATION).is_some();
    let id = if is_letter { given.or(own_id) } else { own_id.or(given) };
    let published = received.publish_time.and_then(|time| to_system_time(time.seconds(), time.nanos()));

    let mut message = Message::builder(received.data)
        .message_id(id.unwrap_or_else(|| received.message_id.clone()))
        .origin(origin)
        .redelivered(attempt.is_some_and(|attempt| attempt > 1));
    // Facts first, so that no header of the producer hides them.
    message = message.header(facts::MESSAGE_ID, received.message_id);
    if let Some(at) = published {
        message = message
            .timestamp(at)
            .header(facts::PUBLISH_TIME, humantime::format_rfc3339_micros(at).to_string());
    }
    if !received.ordering_key.is_empty() {
        let key = Bytes::from(received.ordering_key);
        message = message.order_key(key.clone()).header(facts::ORDERING_KEY, key);
    }
    if let Some(attempt) = attempt {
        message = message.header(facts::DELIVERY_ATTEMPT, attempt.to_string());
    }
    if let Some(what) = defect {
        message = message.defect(Defect::Malformed { what: what.to_owned() });
    }
    headers.into_iter().fold(message, |message, (name, value)| message.header(name, value)).build()
}

/// The producer's headers, sorted by name since attributes have no order, and the defect, if there is one.
fn producer_headers(received: &Received) -> (Vec<(String, Bytes)>, Option<&'static str>) {
    let attributes = || received.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut headers: Vec<_> = attributes()
        .filter(|(name, _)| !is_packed(name) && *name != EMPTY)
        .map(|(name, value)| (name.to_owned(), Bytes::copy_from_slice(value.as_bytes())))
        .collect();
    headers.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    let mut defect = None;
    match unpack(attributes()) {
        Some(unpacked) => headers.extend(unpacked),
        None => defect = Some("its packed headers are unreadable"),
    }
    headers.retain(|(name, _)| !is_fact(name));
    (headers, defect)
}

fn to_system_time(seconds: i64, nanos: i32) -> Option<SystemTime> {
    let since = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?);
    UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests {
    use onceward::Outgoing;

    use super::*;
    use crate::format::outgoing;

    fn received(attributes: &[(&str, &str)]) -> Received {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Received::new().set_data("body").set_message_id("17").set_ordering_key("k").set_attributes(attributes)
    }

    fn convert(received: Received, attempt: Option<i32>, own_headers: &OwnHeaders) -> Message {
        to_message(received, attempt, "projects/p/subscriptions/s".into(), own_headers)
    }

    fn header(message: &Message, name: &str) -> Option<String> {
        message.header(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    #[test]
    fn facts_are_headers_and_imitations_are_dropped() {
        let imitated = received(&[("PubSub_Message_ID", "99"), ("pubsub-delivery-attempt", "9"), ("a", "1")]);
        let message = convert(imitated, Some(2), &OwnHeaders::default());
        assert_eq!(message.id(), Some(&b"17"[..]));
        assert_eq!(message.order_key().map(|key| &key[..]), Some(&b"k"[..]));
        assert_eq!(header(&message, facts::DELIVERY_ATTEMPT).as_deref(), Some("2"));
        assert!(message.is_redelivered() && header(&message, "PubSub_Message_ID").is_none());
        let names: Vec<_> = message.headers().map(|(name, _)| name).collect();
        assert_eq!(names, [facts::MESSAGE_ID, facts::ORDERING_KEY, facts::DELIVERY_ATTEMPT, "a"]);
    }

    #[test]
    fn an_id_of_ours_counts_only_if_it_is_trusted() {
        let letter = received(&[(HEADER_ID, "ours")]);
        assert_eq!(convert(letter.clone(), None, &OwnHeaders::default()).id(), Some(&b"17"[..]));
        assert_eq!(convert(letter, None, &OwnHeaders::trusted()).id(), Some(&b"ours"[..]));
    }

    #[test]
    fn what_is_published_is_received_with_its_headers() {
        let headers: Vec<(String, Bytes)> = vec![
            ("a".into(), "1".into()),
            ("a".into(), "2".into()),
            ("binary".into(), Bytes::from_static(b"\xff\x00")),
            ("googclient".into(), "x".into()),
            ("long".into(), vec![b'l'; 5000].into()),
            ("onceward-headers".into(), "mine".into()),
        ];
        let sent = Outgoing { headers: headers.clone(), id: "7".into(), ..Outgoing::default() };
        let published = outgoing::to_message(&sent).unwrap();
        let message = convert(published.set_message_id("1"), None, &OwnHeaders::trusted());
        let mut back: Vec<_> =
            message.headers().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        back.retain(|(name, _)| !is_fact(name) && name != HEADER_ID);
        assert_eq!(back, headers);
        assert_eq!((message.id(), message.defect()), (Some(&b"7"[..]), None));
    }

    #[test]
    fn unreadable_packed_headers_are_a_defect() {
        let message = convert(received(&[("onceward-headers", "[")]), None, &OwnHeaders::default());
        assert!(matches!(message.defect(), Some(Defect::Malformed { .. })));
    }
}
