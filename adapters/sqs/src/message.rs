//! Converts SQS messages to [`Message`]s: [`to_message`].

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_sdk_sqs::types::{Message as Received, MessageSystemAttributeName as System};
use bytes::Bytes;
use onceward::adapter::{Defect, Native};
use onceward::dead_letter::{HEADER_GENERATION, HEADER_ID, HEADER_MESSAGE_ID};
use onceward::own_headers::LETTER;
use onceward::{Message, MessageBuilder, Position};

use crate::config::SqsQueueConfig;
use crate::format::native::{self, FACTS, SqsForm};
use crate::format::{attributes, packed_headers, sns};

/// Converts a message received from the queue `origin`.
///
/// The attributes that mark a base64 body and carry packed headers are read from anybody: they are how SQS carries
/// bytes and names that it does not support, and express nothing that a plain message could not. Packed headers with
/// our names count only if they are trusted.
pub(crate) fn to_message(received: Received, origin: Arc<str>, queue: &SqsQueueConfig) -> Message {
    let system = |name: System| received.attributes.as_ref().and_then(|all| all.get(&name));
    let count = system(System::ApproximateReceiveCount).and_then(|text| text.parse::<u64>().ok());
    let mut id = received.message_id.clone().unwrap_or_default();

    // Before the producer's own headers, so that one of the same name does not hide them.
    let facts = [
        system(System::MessageDeduplicationId),
        system(System::SequenceNumber),
        system(System::ApproximateReceiveCount),
        system(System::SenderId),
        system(System::DeadLetterQueueSourceArn),
    ];
    let facts = FACTS.into_iter().zip(facts).filter_map(|(name, value)| Some((name, value?)));
    let mut headers: Vec<(String, Bytes)> =
        facts.map(|(name, value)| (name.to_owned(), Bytes::copy_from_slice(value.as_bytes()))).collect();
    let mut form = SqsForm { trace: system(System::AwsTraceHeader).cloned(), ..SqsForm::default() };
    let facts = headers.len();
    let mut payload = Bytes::from(received.body.clone().unwrap_or_default());
    let mut defect = add_attributes(&received, &mut headers, &mut form, &mut payload);
    let ours = || headers[facts..].iter().map(|(name, value)| (name.as_str(), &value[..]));
    let is_trusted = queue.own_headers.believes_parts(&LETTER, ours, Some(&payload));
    let own = |wanted: &str| {
        let (_, value) = ours().find(|(name, _)| *name == wanted && is_trusted)?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let is_letter = own(HEADER_GENERATION).is_some();
    // SQS assigns a new id to each copy: an id of ours takes precedence.
    let (own_id, given) = (own(HEADER_ID), own(HEADER_MESSAGE_ID));
    id = if is_letter { given.or(own_id) } else { own_id.or(given) }.unwrap_or(id);
    // Dead letters and retries of ours have no envelope any more.
    if queue.unwrap_sns && !is_letter {
        match sns::parse_envelope(&payload) {
            Some(inner) => {
                id = inner.id;
                payload = inner.payload;
                headers.extend(inner.headers);
                form.attributes = inner.attributes;
            }
            None => defect = Some("it has no SNS envelope; disable unwrap_sns for raw delivery"),
        }
    }
    let mut place = 0..;
    headers
        .retain(|(name, _)| place.next().is_some_and(|place| place < facts) || !native::imitates_fact(name));
    form.attributes.retain(|(name, _)| !native::imitates_fact(name));
    let mut message: MessageBuilder = Message::builder(payload)
        .message_id(id)
        .origin(Arc::clone(&origin))
        .native(Native::new(form))
        .redelivered(count.is_some_and(|count| count > 1));
    if let Some(group) = system(System::MessageGroupId) {
        message = message.order_key(Bytes::copy_from_slice(group.as_bytes()));
        if let Some(position) =
            system(System::SequenceNumber).and_then(|number| to_position(number, &origin, group))
        {
            message = message.position(position);
        }
    }
    let sent = system(System::SentTimestamp).and_then(|text| text.parse().ok());
    if let Some(at) = sent.and_then(|millis| UNIX_EPOCH.checked_add(Duration::from_millis(millis))) {
        message = message.timestamp(at);
    }
    if let Some(what) = defect {
        message = message.defect(Defect::Malformed { what: what.to_owned() });
    }
    headers.into_iter().fold(message, |message, (name, value)| message.header(name, value)).build()
}

/// Adds the message attributes to the headers and the native form, and decodes the body. Returns the defect, if there is one.
fn add_attributes(
    received: &Received,
    headers: &mut Vec<(String, Bytes)>,
    form: &mut SqsForm,
    payload: &mut Bytes,
) -> Option<&'static str> {
    let mut defect = None;
    // Sorted, since the map has no order and headers should have the same order each time.
    let mut received_attributes: Vec<_> =
        received.message_attributes.clone().unwrap_or_default().into_iter().collect();
    received_attributes.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    for (name, value) in received_attributes {
        let bytes = attributes::to_bytes(&value);
        match name.as_str() {
            packed_headers::PACKED => match packed_headers::unpack(&bytes) {
                Some(unpacked) => {
                    for packed_headers::PackedHeader { name, value, data_type } in unpacked {
                        let typed = data_type.and_then(|data_type| attributes::build(&data_type, &value));
                        form.attributes.extend(typed.map(|typed| (name.clone(), typed)));
                        headers.push((name, value));
                    }
                }
                None => defect = Some("its packed headers are unreadable"),
            },
            packed_headers::ENCODING => match packed_headers::decode_body(payload) {
                Some(decoded) => *payload = decoded,
                None => defect = Some("its body is marked as base64 but is not"),
            },
            _ => {
                headers.push((name.clone(), bytes));
                form.attributes.push((name, value));
            }
        }
    }
    defect
}

/// Converts a sequence number to a position. Sequence numbers grow within a message group and have up to 128 bits;
/// larger ones than 96 bits, which SQS has never used, are no position. Partition and offset sort like the numbers.
fn to_position(number: &str, queue: &str, group: &str) -> Option<Position> {
    let number = number.parse::<u128>().ok()?;
    let partition = u32::try_from(number >> 64).ok()?;
    // The low 64 bits; those above are the partition.
    let offset = number as u64;
    Some(Position { incarnation: format!("{queue}#{group}").into(), partition, offset })
}

#[cfg(test)]
mod tests {
    use aws_sdk_sqs::types::MessageAttributeValue;
    use onceward::{Outgoing, OwnHeaders, OwnSecrets};

    use super::*;

    #[test]
    fn attributes_system_attributes_and_ids_become_a_message() {
        let attribute = |text: &str| {
            MessageAttributeValue::builder().data_type("String").string_value(text).build().unwrap()
        };
        let received = Received::builder()
            .message_id("m-1")
            .body("pay")
            .attributes(System::MessageGroupId, "g")
            .attributes(System::SequenceNumber, "18849496460467696128")
            .attributes(System::MessageDeduplicationId, "d")
            .attributes(System::ApproximateReceiveCount, "2")
            .attributes(System::SentTimestamp, "1700000000000")
            .message_attributes("tenant", attribute("a"))
            .message_attributes("sqs-sequence-number", attribute("forged"))
            .build();
        let message = to_message(received, "orders".into(), &queue(OwnHeaders::default()));
        assert_eq!((message.id(), &message.payload()[..]), (Some(&b"m-1"[..]), &b"pay"[..]));
        assert_eq!(message.order_key().unwrap(), &"g");
        assert!(message.is_redelivered() && message.defect().is_none());
        assert_eq!(message.timestamp(), Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        let position = message.position().unwrap();
        assert_eq!((&*position.incarnation, position.partition), ("orders#g", 1));
        assert_eq!(u128::from(position.offset) + (1 << 64), 18_849_496_460_467_696_128);
        for (name, value) in [
            ("tenant", "a"),
            ("sqs-sequence-number", "18849496460467696128"),
            ("sqs-message-deduplication-id", "d"),
        ] {
            assert_eq!(message.header(name).unwrap(), &value);
        }
    }

    #[test]
    fn an_sns_envelope_is_removed_and_its_absence_is_a_defect() {
        let body = r#"{"Type":"Notification","MessageId":"n-1","TopicArn":"arn:t","Message":"pay",
            "MessageAttributes":{"tenant":{"Type":"String","Value":"a"},"blob":{"Type":"Binary","Value":"/w=="}}}"#;
        let sns = SqsQueueConfig { unwrap_sns: true, ..queue(OwnHeaders::default()) };
        let received = |body: &str| Received::builder().message_id("m-1").body(body).build();
        let message = to_message(received(body), "orders".into(), &sns);
        assert_eq!((message.id(), &message.payload()[..]), (Some(&b"n-1"[..]), &b"pay"[..]));
        assert_eq!(message.header("tenant").unwrap(), &"a");
        assert_eq!(message.header("blob").unwrap(), &b"\xff"[..]);
        assert!(to_message(received("pay"), "orders".into(), &sns).defect().is_some());

        // Its letter has no envelope any more, and keeps the types, if it is known to be one.
        let own = sealing(b"0123456789abcdef");
        let letter = letter(&message, &own);
        let (sent, _) = native::to_entry(0, &letter).unwrap();
        let sent_attributes = sent.message_attributes.clone();
        let again = || {
            let again = Received::builder().message_id("m-2").body(sent.message_body.clone());
            again.set_message_attributes(sent_attributes.clone()).build()
        };
        let queue = |own| SqsQueueConfig { unwrap_sns: true, ..queue(own) };
        let known = to_message(again(), "orders".into(), &queue(own));
        assert!(known.defect().is_none());
        assert_eq!((known.id(), &known.payload()[..]), (Some(&b"n-1"[..]), &b"pay"[..]));
        assert_eq!(sent_attributes.as_ref().unwrap()["blob"].data_type, "Binary");
        assert!(to_message(again(), "orders".into(), &queue(OwnHeaders::default())).defect().is_some());
    }

    fn queue(own_headers: OwnHeaders) -> SqsQueueConfig {
        SqsQueueConfig { own_headers, ..SqsQueueConfig::new("http://h/orders") }
    }

    fn sealing(secret: &[u8; 16]) -> OwnHeaders {
        OwnHeaders::authenticated(OwnSecrets::new(secret).unwrap())
    }

    /// The letter of `message`, as the pipeline makes it.
    fn letter(message: &Message, own: &OwnHeaders) -> Outgoing {
        let id = String::from_utf8(message.id().unwrap().to_vec()).unwrap();
        let ours = [("onceward-scope", "billing"), ("onceward-generation", "0"), (HEADER_MESSAGE_ID, &id)];
        let ours = ours.map(|(name, value)| (name.to_owned(), Bytes::copy_from_slice(value.as_bytes())));
        let theirs = message.headers().map(|(name, value)| (name.to_owned(), value.clone()));
        let mut headers: Vec<_> = theirs.chain(ours).collect();
        let own_id = "k-0".to_owned();
        let to_seal = || {
            let headers = headers.iter().map(|(name, value)| (name.as_str(), &value[..]));
            headers.chain([(HEADER_ID, own_id.as_bytes())])
        };
        if let Some((name, value)) = own.seal_parts(&LETTER, to_seal, Some(message.payload())) {
            headers.push((name.to_owned(), value));
        }
        let (payload, native) = (message.payload().clone(), message.native().cloned());
        Outgoing { id, own_id, headers, payload, native, ..Outgoing::default() }
    }

    fn delivered(sent: &onceward::Outgoing) -> Received {
        let (sent, _) = native::to_entry(0, sent).unwrap();
        let received = Received::builder().message_id("m-2").body(sent.message_body);
        received.set_message_attributes(sent.message_attributes).build()
    }

    #[test]
    fn a_sealed_letter_is_trusted_whatever_its_payload_and_a_forged_one_is_not() {
        let own = sealing(b"0123456789abcdef");
        for payload in [&b"pay"[..], b"", b"\xff\x00"] {
            let message = Message::builder(payload.to_vec()).message_id("m-1").header("tenant", "a").build();
            let known = to_message(delivered(&letter(&message, &own)), "orders".into(), &queue(own.clone()));
            assert_eq!((known.id(), &known.payload()[..]), (Some(&b"m-1"[..]), payload));
            assert!(own.believes(&LETTER, &known));
            for (sealed_by, read_by) in [
                (OwnHeaders::default(), own.clone()),
                (sealing(b"fedcba9876543210"), own.clone()),
                (own.clone(), OwnHeaders::default()),
            ] {
                let other = to_message(
                    delivered(&letter(&message, &sealed_by)),
                    "orders".into(),
                    &queue(read_by.clone()),
                );
                assert_eq!(
                    (other.id(), &other.payload()[..]),
                    (Some(&b"m-2"[..]), payload),
                    "its id is SQS's"
                );
                assert!(!read_by.believes(&LETTER, &other));
            }
        }
    }

    #[test]
    fn an_id_that_anybody_can_write_is_a_header_and_not_the_id() {
        let attribute = |text: &str| {
            MessageAttributeValue::builder().data_type("String").string_value(text).build().unwrap()
        };
        let packed =
            format!(r#"[["{HEADER_MESSAGE_ID}","victim"],["onceward-key","k"],["sqs-sender-id","admin"]]"#);
        let received = || {
            let received = Received::builder().message_id("m-1").body("pay");
            let received = received.message_attributes(HEADER_ID, attribute("victim"));
            received.message_attributes(packed_headers::PACKED, attribute(&packed)).build()
        };
        for own in [OwnHeaders::default(), sealing(b"0123456789abcdef")] {
            let message = to_message(received(), "orders".into(), &queue(own));
            assert_eq!(message.id(), Some(&b"m-1"[..]));
            assert_eq!(message.header(HEADER_ID).unwrap(), &"victim");
        }
        let trusted = to_message(received(), "orders".into(), &queue(OwnHeaders::trusted()));
        assert_eq!(trusted.id(), Some(&b"victim"[..]));
    }

    #[test]
    fn producer_headers_cannot_imitate_facts_of_sqs() {
        let attribute =
            MessageAttributeValue::builder().data_type("String").string_value("admin").build().unwrap();
        let names =
            ["sqs-sender-id", "SQS-Sender-Id", "sqs_sender_id", "sqs.sequence-number", "sqs-anything"];
        let packed: Vec<_> = names.iter().map(|name| format!(r#"["{name}","admin"]"#)).collect();
        let packed = format!("[{}]", packed.join(","));
        let packed =
            MessageAttributeValue::builder().data_type("String").string_value(packed).build().unwrap();
        let received = Received::builder().message_id("m-1").body("pay").attributes(System::SenderId, "AIDA");
        let received = names
            .iter()
            .fold(received, |received, name| received.message_attributes(*name, attribute.clone()));
        let received =
            received.message_attributes("sqsx", attribute).message_attributes(packed_headers::PACKED, packed);
        let message = to_message(received.build(), "orders".into(), &queue(OwnHeaders::trusted()));
        let headers: Vec<_> = message.headers().map(|(name, value)| (name, &value[..])).collect();
        assert_eq!(headers, [("sqs-sender-id", &b"AIDA"[..]), ("sqsx", b"admin")]);
        let form = message.native().unwrap().get::<SqsForm>().unwrap();
        assert_eq!(form.attributes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["sqsx"]);
    }
}
