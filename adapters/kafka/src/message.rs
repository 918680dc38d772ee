//! Converts Kafka records to messages.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use onceward::adapter::{Defect, Native};
use onceward::dead_letter::HEADER_TIMESTAMP;
use onceward::own_headers::LETTER;
use onceward::{Message, OwnHeaders, Position};
use rdkafka::message::{BorrowedMessage, Headers, Message as _, OwnedHeaders, Timestamp};

use crate::retry::copy::CopyHeaders;

/// Headers that [`Message`] cannot express.
pub(crate) enum KafkaHeaders {
    /// Some headers have no value.
    Parsed(Vec<(Box<str>, Option<Bytes>)>),
    /// Some header names are not UTF-8.
    Raw(OwnedHeaders),
}

/// The header with the message id of the producer.
pub(crate) const MESSAGE_ID: &str = "message-id";

/// Converts a record to a message. The record key becomes the ordering key. For a retry topic, `max_wait` is the longest wait
/// there: then the headers of copies are interpreted, as far as they are trusted, and the remaining wait is returned.
pub fn to_message(
    record: &BorrowedMessage<'_>,
    topic: &Arc<str>,
    incarnation: &Arc<str>,
    max_wait: Option<Duration>,
    own: &OwnHeaders,
) -> (Message, Duration) {
    let (mut headers, native) = read_headers(record);
    let copy = match (&mut headers, max_wait) {
        (Some(headers), Some(max_wait)) => CopyHeaders::extract(headers, record.payload(), max_wait, own),
        _ => CopyHeaders::default(),
    };
    let timestamp = copy.timestamp.or_else(|| letter_timestamp(headers.as_ref()?, record.payload(), own));
    let position = || Position {
        incarnation: Arc::clone(incarnation),
        partition: u32::try_from(record.partition()).unwrap_or_default(),
        offset: u64::try_from(record.offset()).unwrap_or_default(),
    };
    let mut builder = Message::builder(Bytes::copy_from_slice(record.payload().unwrap_or_default()))
        .origin(copy.origin.unwrap_or_else(|| Arc::clone(topic)))
        .position(copy.position.unwrap_or_else(position));
    if record.payload().is_none() {
        builder = builder.null_payload();
    }
    if let Some(native) = native {
        builder = builder.native(Native::new(native));
    }
    if let Some(key) = record.key() {
        builder = builder.order_key(Bytes::copy_from_slice(key));
    }
    if let Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) = record.timestamp()
        && let Ok(ms) = u64::try_from(ms)
        && let Some(at) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms))
    {
        builder = builder.timestamp(at);
    }
    // The record's own timestamp is that of the copy.
    if let Some(at) = timestamp {
        builder = builder.timestamp(at);
    }
    match headers {
        Some(headers) => {
            if let Some((_, id)) = headers.iter().rfind(|(name, _)| &**name == MESSAGE_ID) {
                builder = builder.message_id(id);
            }
            builder = builder.headers(headers);
        }
        None => builder = builder.defect(Defect::Malformed { what: "a header name is not UTF-8".into() }),
    }
    (builder.build(), copy.wait)
}

/// Returns the timestamp of a dead letter's message, if a trusted header has it.
fn letter_timestamp(headers: &PlainHeaders, payload: Option<&[u8]>, own: &OwnHeaders) -> Option<SystemTime> {
    let (_, at) = headers.iter().find(|(name, _)| &**name == HEADER_TIMESTAMP)?;
    let pairs = || headers.iter().map(|(name, value)| (&**name, &value[..]));
    if !own.believes_parts(&LETTER, pairs, payload) {
        return None;
    }
    let at = std::str::from_utf8(at).ok()?.parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at))
}

/// Headers as [`Message`] has them.
type PlainHeaders = Vec<(Box<str>, Bytes)>;

/// Reads the headers, and their native form if text and bytes cannot express them. The client panics at a header name that is
/// not UTF-8; one such record must not stop the others.
fn read_headers(record: &BorrowedMessage<'_>) -> (Option<PlainHeaders>, Option<KafkaHeaders>) {
    let Some(headers) = record.headers() else { return (Some(Vec::new()), None) };
    let read = || -> Vec<(Box<str>, Option<Bytes>)> {
        headers.iter().map(|own| (own.key.into(), own.value.map(Bytes::copy_from_slice))).collect()
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) if read.iter().any(|(_, value)| value.is_none()) => {
            let plain =
                |(name, value): &(Box<str>, Option<Bytes>)| (name.clone(), value.clone().unwrap_or_default());
            (Some(read.iter().map(plain).collect()), Some(KafkaHeaders::Parsed(read)))
        }
        Ok(read) => {
            let plain = |(name, value): (Box<str>, Option<Bytes>)| (name, value.unwrap_or_default());
            (Some(read.into_iter().map(plain).collect()), None)
        }
        Err(_) => (None, Some(KafkaHeaders::Raw(headers.detach()))),
    }
}
