//! A message in SQS's own form: [`Form`] keeps what was received, [`entry`] makes what is sent.

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{
    MessageAttributeValue as Value, MessageSystemAttributeNameForSends as SystemName,
    MessageSystemAttributeValue, SendMessageBatchRequestEntry as Entry,
};
use bytes::Bytes;
use onceward::dead_letter::{HEADER_ID, HEADER_MESSAGE_ID, HEADER_PREFIX};
use onceward::own_headers::passes_for;
use onceward::{Error, Outgoing};

use crate::pack::{self, Packed};
use crate::{error, fifo};

/// The most attributes of a message, by SQS's rules.
const ATTRIBUTES: usize = 10;

/// What SQS says of a delivery, as headers of the message. They are about that delivery and are not sent on.
pub(crate) const FACTS: [&str; 5] = [
    "sqs-message-deduplication-id",
    "sqs-sequence-number",
    "sqs-receive-count",
    "sqs-sender-id",
    "sqs-dead-letter-queue-source-arn",
];

/// What the names of these begin with: a producer's header that could pass for one is left out.
const FACTS_PREFIX: &str = "sqs-";

/// True for a name that SQS's own word on a delivery could stand under.
pub(crate) fn passes_for_fact(name: &str) -> bool {
    passes_for(name, FACTS_PREFIX)
}

/// What a message came with that its headers do not express: attributes with their types, and the trace header.
#[derive(Debug, Default)]
pub(crate) struct Form {
    /// The producer's attributes, by name.
    pub(crate) attributes: Vec<(String, Value)>,
    /// `AWSTraceHeader`, the one system attribute that can be sent.
    pub(crate) trace: Option<String>,
}

/// The value of an attribute as a header's.
pub(crate) fn bytes(value: &Value) -> Bytes {
    match (&value.string_value, &value.binary_value) {
        (Some(text), _) => Bytes::copy_from_slice(text.as_bytes()),
        (None, Some(blob)) => Bytes::copy_from_slice(blob.as_ref()),
        (None, None) => Bytes::new(),
    }
}

/// An attribute of a given type, such as `Number` or `Binary.png`; `None` if the value cannot be one.
pub(crate) fn value(data_type: &str, bytes: &[u8]) -> Option<Value> {
    let builder = Value::builder().data_type(data_type);
    let builder = if data_type.starts_with("Binary") {
        builder.binary_value(Blob::new(bytes))
    } else {
        builder.string_value(std::str::from_utf8(bytes).ok()?)
    };
    builder.build().ok()
}

/// The size of an attribute as SQS counts it: name, type and value.
fn size(name: &str, value: &Value) -> usize {
    name.len() + value.data_type.len() + bytes(value).len()
}

/// What is sent for a message, and its size in bytes as SQS counts it.
///
/// The attributes that the message came with go first, with their types; then plain headers. Of SQS's ten attributes, ours take
/// what is left: all headers that start with `onceward-`, those that SQS would refuse, and what has no room, are packed into
/// one.
pub(crate) fn entry(place: usize, outgoing: &Outgoing) -> Result<(Entry, usize), Error> {
    let wrong = |error| error::config("send a message", format!("an entry is incomplete: {error}"));
    let (body, encoded) = pack::body(&outgoing.payload);
    let form = outgoing.native.as_ref().and_then(|native| native.get::<Form>());
    let mut packed = Packed::default();
    let mut attributes: Vec<(&str, Value)> = Vec::new();
    for (name, value) in form.into_iter().flat_map(|form| &form.attributes) {
        if !name.starts_with(HEADER_PREFIX) {
            attributes.push((name, value.clone()));
        }
    }
    let of_producer = attributes.len();
    for (name, value) in &outgoing.headers {
        let is_native = attributes[..of_producer].iter().any(|(own, _)| own == name);
        if is_native || FACTS.contains(&name.as_str()) || is_replaced(name, outgoing) {
            continue;
        }
        let is_plain = !name.starts_with(HEADER_PREFIX) && attributes.iter().all(|(own, _)| own != name);
        match pack::plain(name, value)
            .filter(|_| is_plain)
            .and_then(|text| self::value("String", text.as_bytes()))
        {
            Some(value) => attributes.push((name, value)),
            None => packed.add(name, value),
        }
    }
    // The id that SQS gives a message is another one each time: ours and the producer's go as headers.
    let mut id = (!outgoing.id.is_empty()).then_some(outgoing.id.as_str());
    if !outgoing.own_id.is_empty() {
        packed.add(HEADER_ID, outgoing.own_id.as_bytes());
        if let Some(id) = id.take() {
            packed.add(HEADER_MESSAGE_ID, id.as_bytes());
        }
    }
    let room = ATTRIBUTES - usize::from(encoded);
    let is_full = attributes.len() + usize::from(id.is_some()) > room - usize::from(!packed.is_empty());
    if is_full && let Some(id) = id.take() {
        packed.replace(HEADER_ID, id.as_bytes());
    }
    while attributes.len() > room - usize::from(!packed.is_empty()) {
        let Some((name, value)) = attributes.pop() else { break };
        packed.add_typed(name, &value);
    }
    let own = |text: &str| self::value("String", text.as_bytes());
    if let Some(text) = packed.into_text() {
        attributes.extend(own(&text).map(|value| (pack::PACKED, value)));
    }
    if encoded {
        attributes.extend(own("base64").map(|value| (pack::ENCODING, value)));
    }
    // Binary, for an id may hold what SQS takes for no text.
    attributes.extend(id.and_then(|id| self::value("Binary", id.as_bytes())).map(|value| (pack::ID, value)));

    let mut bytes = body.len();
    let mut entry = Entry::builder().id(place.to_string()).message_body(body);
    for (name, value) in attributes {
        bytes += size(name, &value);
        entry = entry.message_attributes(name, value);
    }
    if let Some(trace) = form.and_then(|form| form.trace.as_ref()) {
        // SQS does not count it.
        let value = MessageSystemAttributeValue::builder().data_type("String").string_value(trace).build();
        entry = entry.message_system_attributes(SystemName::AwsTraceHeader, value.map_err(wrong)?);
    }
    if fifo::is_fifo(&outgoing.destination) {
        entry = entry
            .message_group_id(fifo::group(outgoing))
            .message_deduplication_id(fifo::deduplication_id(outgoing));
    }
    Ok((entry.build().map_err(wrong)?, bytes))
}

/// True for a header that an id of the message takes the place of.
fn is_replaced(name: &str, outgoing: &Outgoing) -> bool {
    let has_own = !outgoing.own_id.is_empty();
    (name == HEADER_ID && has_own) || (name == HEADER_MESSAGE_ID && has_own && !outgoing.id.is_empty())
}

#[cfg(test)]
mod tests {
    use onceward::Native;

    use super::*;

    fn attribute(data_type: &str, bytes: &[u8]) -> Value {
        value(data_type, bytes).unwrap()
    }

    fn letter(attributes: Vec<(String, Value)>) -> Outgoing {
        let headers = attributes.iter().map(|(name, value)| (name.clone(), bytes(value)));
        let ours =
            [("onceward-key", "k"), ("onceward-generation", "0"), ("onceward-message-id", "producer's")];
        let facts = [("sqs-receive-count", "3"), ("sqs-sender-id", "someone")];
        let more = ours.into_iter().chain(facts).map(|(name, value)| (name.to_owned(), Bytes::from(value)));
        Outgoing {
            destination: "http://h/dead".into(),
            id: "producer's".into(),
            own_id: "k-0".into(),
            headers: headers.chain(more).collect(),
            payload: "body".into(),
            native: Some(Native::new(Form { attributes, trace: Some("Root=1".into()) })),
            ..Outgoing::default()
        }
    }

    #[test]
    fn a_letter_has_the_producers_attributes_with_their_types_and_ours_in_one() {
        let attributes: Vec<_> =
            [("a", "String.trace"), ("b", "Number.float"), ("c", "Binary.png"), ("d", "String")]
                .map(|(name, data_type)| (name.to_owned(), attribute(data_type, b"17")))
                .into();
        let (entry, _) = entry(0, &letter(attributes.clone())).unwrap();
        let sent = entry.message_attributes.unwrap();
        for (name, value) in &attributes {
            assert_eq!(&sent[name], value);
        }
        assert_eq!(sent.len(), 5, "{sent:?}");
        let packed = pack::unpack(&bytes(&sent[pack::PACKED])).unwrap();
        let names: Vec<_> = packed.iter().map(|header| header.name.as_str()).collect();
        assert_eq!(names, ["onceward-key", "onceward-generation", "onceward-id", "onceward-message-id"]);
        let trace = &entry.message_system_attributes.unwrap()[&SystemName::AwsTraceHeader];
        assert_eq!(trace.string_value(), Some("Root=1"));
    }

    #[test]
    fn ten_attributes_stay_and_those_without_room_are_packed_with_their_types() {
        let attributes: Vec<_> = (0..10).map(|n| (format!("a{n}"), attribute("Number", b"1"))).collect();
        let (entry, _) = entry(0, &letter(attributes)).unwrap();
        let sent = entry.message_attributes.unwrap();
        assert_eq!(sent.len(), 10);
        let packed = pack::unpack(&bytes(&sent[pack::PACKED])).unwrap();
        let kept = packed.iter().find(|header| header.name == "a9").unwrap();
        assert_eq!((kept.data_type.as_deref(), &kept.value[..]), (Some("Number"), &b"1"[..]));
    }

    #[test]
    fn an_id_of_its_own_takes_an_attribute_if_there_is_room_and_is_packed_otherwise() {
        for (count, is_packed) in [(0, false), (9, false), (10, true), (12, true)] {
            let headers: Vec<_> = (0..count).map(|n| (format!("h{n}"), Bytes::from("1"))).collect();
            let outgoing =
                Outgoing { id: "row-1".into(), headers, payload: "x".into(), ..Outgoing::default() };
            let sent = entry(0, &outgoing).unwrap().0.message_attributes.unwrap();
            assert!(sent.len() <= 10, "{count}");
            assert_eq!(sent.contains_key(pack::PACKED), is_packed, "{count}");
            assert_eq!(sent.contains_key(pack::ID), !is_packed, "{count}");
        }
    }

    #[test]
    fn the_size_is_that_of_body_names_types_and_values() {
        let outgoing = Outgoing { id: "1".into(), payload: "body".into(), ..Outgoing::default() };
        let expected = "body".len() + "onceward-id".len() + "Binary".len() + 1;
        assert_eq!(entry(0, &outgoing).unwrap().1, expected);
        let headers = vec![("tenant".to_owned(), Bytes::from("abc"))];
        let outgoing = Outgoing { headers, ..outgoing };
        assert_eq!(entry(0, &outgoing).unwrap().1, expected + "tenant".len() + "String".len() + 3);
    }
}
