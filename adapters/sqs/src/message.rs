//! Turns what SQS delivers into a [`Message`].

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_sdk_sqs::types::{Message as Received, MessageSystemAttributeName as System};
use bytes::Bytes;
use onceward::{Defect, Message, MessageBuilder, Position};

use crate::{pack, sns};

/// The message of a delivery from the queue `origin`.
pub(crate) fn from(received: Received, origin: Arc<str>, unwrap_sns: bool) -> Message {
    let system = |name: System| received.attributes.as_ref().and_then(|all| all.get(&name));
    let count = system(System::ApproximateReceiveCount).and_then(|text| text.parse::<u64>().ok());
    let mut id = received.message_id.clone().unwrap_or_default();
    let mut defect = None;

    // These stand before the producer's own headers, so that one of the same name does not hide them.
    let mut headers: Vec<(String, Bytes)> = Vec::new();
    for (name, value) in [
        ("sqs-message-deduplication-id", system(System::MessageDeduplicationId)),
        ("sqs-sequence-number", system(System::SequenceNumber)),
        ("sqs-receive-count", system(System::ApproximateReceiveCount)),
        ("sqs-sender-id", system(System::SenderId)),
        ("sqs-dead-letter-queue-source-arn", system(System::DeadLetterQueueSourceArn)),
    ] {
        if let Some(value) = value {
            headers.push((name.to_owned(), Bytes::copy_from_slice(value.as_bytes())));
        }
    }
    let attributes = received.message_attributes.as_ref();
    let mut payload = Bytes::from(received.body.clone().unwrap_or_default());
    // The map has no order; headers of a message should come in the same order each time.
    let mut names: Vec<_> = attributes.into_iter().flat_map(|all| all.keys()).collect();
    names.sort_unstable();
    for name in names {
        let Some(value) = attributes.and_then(|all| all.get(name)) else { continue };
        let bytes = match (&value.string_value, &value.binary_value) {
            (Some(text), _) => Bytes::copy_from_slice(text.as_bytes()),
            (None, Some(blob)) => Bytes::copy_from_slice(blob.as_ref()),
            (None, None) => Bytes::new(),
        };
        match name.as_str() {
            pack::ID => id = String::from_utf8_lossy(&bytes).into_owned(),
            pack::PACKED => match pack::unpack(&bytes) {
                Some(unpacked) => headers.extend(unpacked),
                None => defect = Some("its packed headers cannot be read"),
            },
            pack::ENCODING => match pack::payload(&payload) {
                Some(decoded) => payload = decoded,
                None => defect = Some("its body is not the base64 it is said to be"),
            },
            _ => headers.push((name.clone(), bytes)),
        }
    }
    if unwrap_sns {
        match sns::unwrap(&payload) {
            Some(inner) => {
                id = inner.id;
                payload = inner.payload;
                headers.extend(inner.headers);
            }
            None => defect = Some("it has no SNS envelope; turn unwrap_sns off for raw delivery"),
        }
    }
    let mut message: MessageBuilder = Message::builder(payload)
        .message_id(id)
        .origin(Arc::clone(&origin))
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
    }
}
