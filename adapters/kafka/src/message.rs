//! A Kafka record as a [`Message`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use onceward::{Defect, Message, Position};
use rdkafka::message::{BorrowedMessage, Headers, Message as _, Timestamp};

use crate::retry::Copied;

/// The header that carries a message's id, where its producer gave one.
pub(crate) const MESSAGE_ID: &str = "message-id";

/// A record as a message, and how long it is to wait, if it is a copy in a retry topic; only there the headers of copies mean
/// something. The record key is the ordering key, if there is one; a tombstone has an empty payload.
pub(crate) fn from(
    record: &BorrowedMessage<'_>,
    topic: &Arc<str>,
    incarnation: &Arc<str>,
    is_retry: bool,
) -> (Message, Duration) {
    let mut headers = headers(record);
    let copied = match &mut headers {
        Some(headers) if is_retry => Copied::read(headers),
        _ => Copied::default(),
    };
    let position = || Position {
        incarnation: Arc::clone(incarnation),
        partition: u32::try_from(record.partition()).unwrap_or_default(),
        offset: u64::try_from(record.offset()).unwrap_or_default(),
    };
    let mut builder = Message::builder(Bytes::copy_from_slice(record.payload().unwrap_or_default()))
        .origin(copied.origin.unwrap_or_else(|| Arc::clone(topic)))
        .position(copied.position.unwrap_or_else(position));
    if let Some(key) = record.key() {
        builder = builder.order_key(Bytes::copy_from_slice(key));
    }
    if let Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) = record.timestamp()
        && let Ok(ms) = u64::try_from(ms)
        && let Some(at) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms))
    {
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

/// The client panics at a header name that is not UTF-8; one such record must not stop the others.
fn headers(record: &BorrowedMessage<'_>) -> Option<Vec<(Box<str>, Bytes)>> {
    let read = || match record.headers() {
        Some(headers) => headers
            .iter()
            .map(|header| (header.key.into(), header.value.map_or_else(Bytes::new, Bytes::copy_from_slice)))
            .collect(),
        None => Vec::new(),
    };
    catch_unwind(AssertUnwindSafe(read)).ok()
}
