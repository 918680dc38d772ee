//! The native form of an SQS message, which keeps attribute types across copies: [`SqsForm`], and its conversion to
//! an entry to send: [`to_entry`].

use aws_sdk_sqs::types::{
    MessageAttributeValue as Value, MessageSystemAttributeNameForSends as SystemName,
    MessageSystemAttributeValue, SendMessageBatchRequestEntry as Entry,
};
use onceward::dead_letter::{HEADER_ID, HEADER_MESSAGE_ID, HEADER_PREFIX};
use onceward::own_headers::passes_for;
use onceward::{Error, Outgoing};

use crate::error;
use crate::format::packed_headers::{self, PackedHeaders};
use crate::format::{attributes, fifo};

/// The most attributes of a message, an SQS limit.
const ATTRIBUTES: usize = 10;

/// Facts of SQS about a delivery, as headers of the message. They describe that delivery and are not sent on.
pub(crate) const FACTS: [&str; 5] = [
    "sqs-message-deduplication-id",
    "sqs-sequence-number",
    "sqs-receive-count",
    "sqs-sender-id",
    "sqs-dead-letter-queue-source-arn",
];

/// The prefix of the facts; producer headers that imitate it are dropped.
const FACTS_PREFIX: &str = "sqs-";

/// True for a header name that imitates a fact of SQS.
pub(crate) fn imitates_fact(name: &str) -> bool {
    passes_for(name, FACTS_PREFIX)
}

/// The parts of a received message that its headers do not express: attributes with their types, and the trace header.
#[derive(Debug, Default)]
pub(crate) struct SqsForm {
    /// The producer's attributes, by name.
    pub(crate) attributes: Vec<(String, Value)>,
    /// `AWSTraceHeader`, the only system attribute that can be sent.
    pub(crate) trace: Option<String>,
}

/// Builds the entry to send for a message, and its size in bytes as SQS counts it.
///
/// The attributes of the native form go first, with their types; then plain headers. Of SQS's ten attributes, ours use
/// what is left: headers that start with `onceward-`, headers that SQS would reject, and attributes beyond the limit
/// are packed into one.
pub(crate) fn to_entry(index: usize, outgoing: &Outgoing) -> Result<(Entry, usize), Error> {
    let incomplete = |error| error::config("send a message", format!("incomplete entry: {error}"));
    let (body, encoded) = packed_headers::encode_body(&outgoing.payload);
    let form = outgoing.native.as_ref().and_then(|native| native.get::<SqsForm>());
    let mut packed = PackedHeaders::default();
    let mut attributes: Vec<(&str, Value)> = Vec::new();
    for (name, value) in form.into_iter().flat_map(|form| &form.attributes) {
        if !name.starts_with(HEADER_PREFIX) && !outgoing.replaces_native(name) {
            attributes.push((name, value.clone()));
        }
    }
    let native_count = attributes.len();
    for (name, value) in &outgoing.headers {
        let is_native = attributes[..native_count].iter().any(|(own, _)| own == name);
        if is_native || FACTS.contains(&name.as_str()) || is_replaced(name, outgoing) {
            continue;
        }
        let is_plain = !name.starts_with(HEADER_PREFIX) && attributes.iter().all(|(own, _)| own != name);
        let text = packed_headers::plain_text(name, value).filter(|_| is_plain);
        match text.and_then(|text| attributes::build("String", text.as_bytes())) {
            Some(value) => attributes.push((name, value)),
            None => packed.add(name, value),
        }
    }
    // SQS assigns a new id to each message: our id and the producer's are sent as headers.
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
    let text_attribute = |text: &str| attributes::build("String", text.as_bytes());
    if let Some(text) = packed.into_text() {
        attributes.extend(text_attribute(&text).map(|value| (packed_headers::PACKED, value)));
    }
    if encoded {
        attributes.extend(text_attribute("base64").map(|value| (packed_headers::ENCODING, value)));
    }
    // Binary, since an id may contain characters that SQS rejects in text.
    let id = id.and_then(|id| attributes::build("Binary", id.as_bytes()));
    attributes.extend(id.map(|value| (packed_headers::ID, value)));

    let mut bytes = body.len();
    let mut entry = Entry::builder().id(index.to_string()).message_body(body);
    for (name, value) in attributes {
        bytes += attributes::size(name, &value);
        entry = entry.message_attributes(name, value);
    }
    if let Some(trace) = form.and_then(|form| form.trace.as_ref()) {
        // SQS does not count it.
        let value = MessageSystemAttributeValue::builder().data_type("String").string_value(trace).build();
        entry = entry.message_system_attributes(SystemName::AwsTraceHeader, value.map_err(incomplete)?);
    }
    if fifo::is_fifo(&outgoing.destination) {
        entry = entry
            .message_group_id(fifo::group(outgoing))
            .message_deduplication_id(fifo::deduplication_id(outgoing));
    }
    Ok((entry.build().map_err(incomplete)?, bytes))
}

/// True for a header that is replaced by an id of the message.
fn is_replaced(name: &str, outgoing: &Outgoing) -> bool {
    let has_own = !outgoing.own_id.is_empty();
    (name == HEADER_ID && has_own) || (name == HEADER_MESSAGE_ID && has_own && !outgoing.id.is_empty())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use onceward::adapter::Native;

    use super::*;

    fn attribute(data_type: &str, bytes: &[u8]) -> Value {
        attributes::build(data_type, bytes).unwrap()
    }

    fn letter(attributes: Vec<(String, Value)>) -> Outgoing {
        let headers = attributes.iter().map(|(name, value)| (name.clone(), attributes::to_bytes(value)));
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
            native: Some(Native::new(SqsForm { attributes, trace: Some("Root=1".into()) })),
            ..Outgoing::default()
        }
    }

    #[test]
    fn a_dead_letter_keeps_the_producers_attribute_types_and_packs_ours() {
        let attributes: Vec<_> =
            [("a", "String.trace"), ("b", "Number.float"), ("c", "Binary.png"), ("d", "String")]
                .map(|(name, data_type)| (name.to_owned(), attribute(data_type, b"17")))
                .into();
        let (entry, _) = to_entry(0, &letter(attributes.clone())).unwrap();
        let sent = entry.message_attributes.unwrap();
        for (name, value) in &attributes {
            assert_eq!(&sent[name], value);
        }
        assert_eq!(sent.len(), 5, "{sent:?}");
        let packed = packed_headers::unpack(&attributes::to_bytes(&sent[packed_headers::PACKED])).unwrap();
        let names: Vec<_> = packed.iter().map(|header| header.name.as_str()).collect();
        assert_eq!(names, ["onceward-key", "onceward-generation", "onceward-id", "onceward-message-id"]);
        let trace = &entry.message_system_attributes.unwrap()[&SystemName::AwsTraceHeader];
        assert_eq!(trace.string_value(), Some("Root=1"));
    }

    #[test]
    fn a_trace_context_replaces_the_native_one_but_not_in_a_dead_letter() {
        let sent = |reason: Option<&'static str>| {
            let mut outgoing = letter(vec![("traceparent".to_owned(), attribute("String", b"old"))]);
            outgoing.headers.retain(|(name, _)| name != "traceparent");
            outgoing.headers.push(("traceparent".to_owned(), "new".into()));
            outgoing.headers.extend(reason.map(|reason| ("onceward-reason".to_owned(), reason.into())));
            let attributes = to_entry(0, &outgoing).unwrap().0.message_attributes.unwrap();
            attributes::to_bytes(&attributes["traceparent"])
        };
        assert_eq!(sent(None), "new");
        assert_eq!(sent(Some("permanent")), "old");
    }

    #[test]
    fn ten_attributes_are_sent_and_those_beyond_are_packed_with_their_types() {
        let attributes: Vec<_> = (0..10).map(|n| (format!("a{n}"), attribute("Number", b"1"))).collect();
        let (entry, _) = to_entry(0, &letter(attributes)).unwrap();
        let sent = entry.message_attributes.unwrap();
        assert_eq!(sent.len(), 10);
        let packed = packed_headers::unpack(&attributes::to_bytes(&sent[packed_headers::PACKED])).unwrap();
        let kept = packed.iter().find(|header| header.name == "a9").unwrap();
        assert_eq!((kept.data_type.as_deref(), &kept.value[..]), (Some("Number"), &b"1"[..]));
    }

    #[test]
    fn an_id_is_an_attribute_if_there_is_room_and_packed_otherwise() {
        for (count, is_packed) in [(0, false), (9, false), (10, true), (12, true)] {
            let headers: Vec<_> = (0..count).map(|n| (format!("h{n}"), Bytes::from("1"))).collect();
            let outgoing =
                Outgoing { id: "row-1".into(), headers, payload: "x".into(), ..Outgoing::default() };
            let sent = to_entry(0, &outgoing).unwrap().0.message_attributes.unwrap();
            assert!(sent.len() <= 10, "{count}");
            assert_eq!(sent.contains_key(packed_headers::PACKED), is_packed, "{count}");
            assert_eq!(sent.contains_key(packed_headers::ID), !is_packed, "{count}");
        }
    }

    #[test]
    fn the_size_includes_body_names_types_and_values() {
        let outgoing = Outgoing { id: "1".into(), payload: "body".into(), ..Outgoing::default() };
        let expected = "body".len() + "onceward-id".len() + "Binary".len() + 1;
        assert_eq!(to_entry(0, &outgoing).unwrap().1, expected);
        let headers = vec![("tenant".to_owned(), Bytes::from("abc"))];
        let outgoing = Outgoing { headers, ..outgoing };
        assert_eq!(to_entry(0, &outgoing).unwrap().1, expected + "tenant".len() + "String".len() + 3);
    }
}
