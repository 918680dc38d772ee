//! Turns what SQS delivers into a [`Message`].

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_sdk_sqs::types::{Message as Received, MessageSystemAttributeName as System};
use bytes::Bytes;
use onceward::dead_letter::{HEADER_GENERATION, HEADER_ID, HEADER_MESSAGE_ID};
use onceward::own_headers::LETTER;
use onceward::{Defect, Message, MessageBuilder, Native, Position};

use crate::form::{self, FACTS, Form};
use crate::{QueueConfig, pack, sns};

/// The message of a delivery from the queue `origin`.
///
/// The attribute that says that the body is base64, and that in which headers are packed, are read from anybody: they are how
/// SQS carries bytes and names that it has no room for, and say nothing that a plain message could not. What they carry under
/// our names counts only if it is believed.
pub(crate) fn from(received: Received, origin: Arc<str>, queue: &QueueConfig) -> Message {
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
    let facts = headers.len();
    let mut payload = Bytes::from(received.body.clone().unwrap_or_default());
    // The map has no order; headers of a message should come in the same order each time.
    let mut attributes: Vec<_> =
        received.message_attributes.clone().unwrap_or_default().into_iter().collect();
    attributes.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    for (name, value) in attributes {
        let bytes = form::bytes(&value);
        match name.as_str() {
            pack::PACKED => match pack::unpack(&bytes) {
                Some(unpacked) => {
                    for pack::Header { name, value, data_type } in unpacked {
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
    let ours = || headers[facts..].iter().map(|(name, value)| (name.as_str(), &value[..]));
    let is_believed = queue.own_headers.believes_parts(&LETTER, ours, Some(&payload));
    let own = |wanted: &str| {
        let (_, value) = ours().find(|(name, _)| *name == wanted && is_believed)?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let is_letter = own(HEADER_GENERATION).is_some();
    // What SQS calls the message differs with each copy: the id that it was given goes before.
    let (own_id, given) = (own(HEADER_ID), own(HEADER_MESSAGE_ID));
    id = if is_letter { given.or(own_id) } else { own_id.or(given) }.unwrap_or(id);
    // A letter or a retry of ours has lost its envelope when it first came.
    if queue.unwrap_sns && !is_letter {
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
    let mut place = 0..;
    headers
        .retain(|(name, _)| place.next().is_some_and(|place| place < facts) || !form::passes_for_fact(name));
    form.attributes.retain(|(name, _)| !form::passes_for_fact(name));
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
mod tests;
