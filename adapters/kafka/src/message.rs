//! A Kafka record as a [`Message`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use onceward::dead_letter::HEADER_TIMESTAMP;
use onceward::own_headers::LETTER;
use onceward::{Defect, Message, Native, OwnHeaders, Position};
use rdkafka::message::{BorrowedMessage, Headers, Message as _, OwnedHeaders, Timestamp};

use crate::retry::forwarder::Copied;

/// The headers of a record that [`Message`] cannot express.
pub(crate) enum KafkaHeaders {
    /// Some have no value.
    Parsed(Vec<(Box<str>, Option<Bytes>)>),
    /// Some have names that are not UTF-8.
    Raw(OwnedHeaders),
}

/// The header that carries a message's id, where its producer gave one.
pub(crate) const MESSAGE_ID: &str = "message-id";

/// A record as a message, and how long it is to wait, if it is a copy in a retry topic (then `longest` is the longest wait there);
/// only there the headers of copies mean something, as far as they are believed. The record key is the ordering key, if there
/// is one.
pub fn from(
    record: &BorrowedMessage<'_>,
    topic: &Arc<str>,
    incarnation: &Arc<str>,
    longest: Option<Duration>,
    own: &OwnHeaders,
) -> (Message, Duration) {
    let (mut headers, native) = headers(record);
    let copied = match (&mut headers, longest) {
        (Some(headers), Some(longest)) => Copied::read(headers, record.payload(), longest, own),
        _ => Copied::default(),
    };
    let made = copied.made.or_else(|| made(headers.as_ref()?, record.payload(), own));
    let position = || Position {
        incarnation: Arc::clone(incarnation),
        partition: u32::try_from(record.partition()).unwrap_or_default(),
        offset: u64::try_from(record.offset()).unwrap_or_default(),
    };
    let mut builder = Message::builder(Bytes::copy_from_slice(record.payload().unwrap_or_default()))
        .origin(copied.origin.unwrap_or_else(|| Arc::clone(topic)))
        .position(copied.position.unwrap_or_else(position));
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
    // The record's own time is that of the copy.
    if let Some(at) = made {
        builder = builder.timestamp(at);
    }
    match headers {
        Some(headers) => {
            for (name, value) in headers {
                if &*name == MESSAGE_ID {
                    builder = builder.message_id(&value);
                }
                builder = builder.header(name, value);
            }
        }
        None => builder = builder.defect(Defect::Malformed { what: "a header's name is not UTF-8".into() }),
    }
    (builder.build(), copied.wait)
}

/// When the message of a letter was made, if a believed header says.
fn made(headers: &Plain, payload: Option<&[u8]>, own: &OwnHeaders) -> Option<SystemTime> {
    let (_, at) = headers.iter().find(|(name, _)| &**name == HEADER_TIMESTAMP)?;
    let pairs = || headers.iter().map(|(name, value)| (&**name, &value[..]));
    if !own.believes_parts(&LETTER, pairs, payload) {
        return None;
    }
    let at = std::str::from_utf8(at).ok()?.parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at))
}

/// Headers as [`Message`] has them.
type Plain = Vec<(Box<str>, Bytes)>;

/// The headers, and their native form where text and bytes cannot express them. The client panics at a header name that is not
/// UTF-8; one such record must not stop the others.
fn headers(record: &BorrowedMessage<'_>) -> (Option<Plain>, Option<KafkaHeaders>) {
    let Some(headers) = record.headers() else { return (Some(Vec::new()), None) };
    let read = || -> Vec<(Box<str>, Option<Bytes>)> {
        headers.iter().map(|own| (own.key.into(), own.value.map(Bytes::copy_from_slice))).collect()
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => {
            let has_null = read.iter().any(|(_, value)| value.is_none());
            let plain =
                |(name, value): &(Box<str>, Option<Bytes>)| (name.clone(), value.clone().unwrap_or_default());
            let plain = read.iter().map(plain).collect();
            (Some(plain), has_null.then_some(KafkaHeaders::Parsed(read)))
        }
        Err(_) => (None, Some(KafkaHeaders::Raw(headers.detach()))),
    }
}
