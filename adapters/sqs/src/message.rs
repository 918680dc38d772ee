//! Turns what SQS delivers into a [`Message`].

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_sdk_sqs::types::{Message as Received, MessageSystemAttributeName as System};
use bytes::Bytes;
use onceward::dead_letter::{HEADER_GENERATION, HEADER_MESSAGE_ID};
use onceward::{Defect, Message, MessageBuilder, Native, Position};

use crate::form::{self, FACTS, Form};
use crate::{pack, sns};

/// The message of a delivery from the queue `origin`.
pub(crate) fn from(received: Received, origin: Arc<str>, unwrap_sns: bool) -> Message {
    let system = |name: System| received.attributes.as_ref().and_then(|all| all.get(&name));
    let count = system(System::ApproximateReceiveCount).and_then(|text| text.parse::<u64>().ok());
    let mut id = received.message_id.clone().unwrap_or_default();
    let mut defect = None;

    // These stand before the producer's own headers, so that one of the same name does not hide them.
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
    let mut form = Form { trace: system(System::AwsTraceHeader).cloned(), ..Form::default() };
    let (mut own_id, mut letter_id, mut is_ours) = (None, None, false);
    let mut payload = Bytes::from(received.body.clone().unwrap_or_default());
    // The map has no order; headers of a message should come in the same order each time.
    let mut attributes: Vec<_> =
        received.message_attributes.clone().unwrap_or_default().into_iter().collect();
    attributes.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    for (name, value) in attributes {
        let bytes = form::bytes(&value);
        match name.as_str() {
            pack::ID => own_id = Some(String::from_utf8_lossy(&bytes).into_owned()),
            pack::PACKED => match pack::unpack(&bytes) {
                Some(unpacked) => {
                    for pack::Header { name, value, data_type } in unpacked {
                        is_ours |= name == HEADER_GENERATION;
                        if name == HEADER_MESSAGE_ID {
                            letter_id = Some(String::from_utf8_lossy(&value).into_owned());
                        }
                        let typed = data_type.and_then(|data_type| form::value(&data_type, &value));
                        form.attributes.extend(typed.map(|typed| (name.clone(), typed)));
                        headers.push((name, value));
                    }
                }
                None => defect = Some("its packed headers cannot be read"),
            },
            pack::ENCODING => match pack::payload(&payload) {
                Some(decoded) => payload = decoded,
                None => defect = Some("its body is not the base64 it is said to be"),
            },
            _ => {
                headers.push((name.clone(), bytes));
                form.attributes.push((name, value));
            }
        }
    }
    // What SQS calls the message differs with each copy: the id that it was given goes before.
    let given = if is_ours { letter_id.or(own_id) } else { own_id.or(letter_id) };
    id = given.unwrap_or(id);
    // A letter or a retry of ours has lost its envelope when it first came.
    if unwrap_sns && !is_ours {
        match sns::unwrap(&payload) {
            Some(inner) => {
                id = inner.id;
                payload = inner.payload;
                headers.extend(inner.headers);
                form.attributes = inner.attributes;
            }
            None => defect = Some("it has no SNS envelope; turn unwrap_sns off for raw delivery"),
        }
    }
    let mut message: MessageBuilder = Message::builder(payload)
        .message_id(id)
        .origin(Arc::clone(&origin))
        .native(Native::new(form))
        .redelivered(count.is_some_and(|count| count > 1));
    if let Some(group) = system(System::MessageGroupId) {
        message = message.order_key(Bytes::copy_from_slice(group.as_bytes()));
        if let Some(position) =
            system(System::SequenceNumber).and_then(|number| position(number, &origin, group))
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

/// Sequence numbers grow within a message group and have up to 128 bits; those of more than 96, which SQS has not come near
/// to, are no position. Partition and offset are in the order of the numbers.
fn position(number: &str, queue: &str, group: &str) -> Option<Position> {
    let number = number.parse::<u128>().ok()?;
    let partition = u32::try_from(number >> 64).ok()?;
    // The bits above are the partition.
    let offset = number as u64;
    Some(Position { incarnation: format!("{queue}#{group}").into(), partition, offset })
}

#[cfg(test)]
mod tests {
    use aws_sdk_sqs::types::MessageAttributeValue;

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
        let message = from(received, "orders".into(), false);
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
    fn an_sns_envelope_is_taken_off_and_its_absence_is_a_defect() {
        let body = r#"{"Type":"Notification","MessageId":"n-1","TopicArn":"arn:t","Message":"pay",
            "MessageAttributes":{"tenant":{"Type":"String","Value":"a"},"blob":{"Type":"Binary","Value":"/w=="}}}"#;
        let received = |body: &str| Received::builder().message_id("m-1").body(body).build();
        let message = from(received(body), "orders".into(), true);
        assert_eq!((message.id(), &message.payload()[..]), (Some(&b"n-1"[..]), &b"pay"[..]));
        assert_eq!(message.header("tenant").unwrap(), &"a");
        assert_eq!(message.header("blob").unwrap(), &b"\xff"[..]);
        assert!(from(received("pay"), "orders".into(), true).defect().is_some());

        // Its letter has no envelope any more, and keeps the types.
        let letter = onceward::Outgoing {
            id: "n-1".into(),
            own_id: "k-0".into(),
            headers: vec![("onceward-generation".into(), "0".into()), ("tenant".into(), "a".into())],
            payload: message.payload().clone(),
            native: message.native().cloned(),
            ..onceward::Outgoing::default()
        };
        let (sent, _) = form::entry(0, &letter).unwrap();
        let sent_attributes = sent.message_attributes.clone();
        let again = Received::builder()
            .message_id("m-2")
            .body(sent.message_body)
            .set_message_attributes(sent_attributes.clone())
            .build();
        let again = from(again, "orders".into(), true);
        assert!(again.defect().is_none());
        assert_eq!((again.id(), &again.payload()[..]), (Some(&b"n-1"[..]), &b"pay"[..]));
        assert_eq!(sent_attributes.unwrap()["blob"].data_type, "Binary");
    }
}
