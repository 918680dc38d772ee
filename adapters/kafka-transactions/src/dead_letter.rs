//! Dead letters of records that failed permanently, with the same headers as a pipeline's.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use onceward::dead_letter::{
    HEADER_ATTEMPTS, HEADER_ERROR, HEADER_LAST_AT, HEADER_MESSAGE_ID, HEADER_ORIGIN, HEADER_POSITION,
    HEADER_PREFIX, HEADER_REASON,
};
use onceward::store::Reason;
use onceward::{Message, Outgoing};

/// The longest error text, in bytes.
const MAX_ERROR_BYTES: usize = 1024;

/// Creates the dead letter of `message`, to the topic `to`.
pub(crate) fn create_letter(
    to: &str,
    message: &Message,
    reason: Reason,
    error: &str,
    attempts: u32,
) -> Outgoing {
    let own = message.headers().filter(|(name, _)| !name.starts_with(HEADER_PREFIX));
    let mut headers: Vec<(String, Bytes)> =
        own.map(|(name, value)| (name.to_owned(), value.clone())).collect();
    let mut add = |name: &str, value: Bytes| headers.push((name.to_owned(), value));
    add(HEADER_REASON, reason.to_string().into());
    add(HEADER_ERROR, Bytes::copy_from_slice(truncate(error).as_bytes()));
    add(HEADER_ATTEMPTS, attempts.to_string().into());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    add(HEADER_LAST_AT, now.as_millis().to_string().into());
    if let Some(origin) = message.origin() {
        add(HEADER_ORIGIN, Bytes::copy_from_slice(origin.as_bytes()));
    }
    if let Some(position) = message.position() {
        let position = format!("{}:{}:{}", position.incarnation, position.partition, position.offset);
        add(HEADER_POSITION, position.into());
    }
    if let Some(id) = message.id() {
        add(HEADER_MESSAGE_ID, Bytes::copy_from_slice(id));
    }
    Outgoing {
        destination: to.to_owned(),
        id: message.id().and_then(|id| std::str::from_utf8(id).ok()).unwrap_or_default().to_owned(),
        order_key: message.order_key().cloned(),
        headers,
        payload: message.payload().clone(),
        null_payload: message.has_null_payload(),
        timestamp: message.timestamp(),
        native: message.native().cloned(),
        ..Outgoing::default()
    }
}

/// The header with the size of an omitted payload, in bytes.
const OVERSIZE: &str = "onceward-oversize-bytes";

/// Creates the replacement of a letter that exceeds its topic's limit: our headers, which identify the record, without its
/// payload and its own headers.
pub(crate) fn without_payload(letter: &Outgoing) -> Outgoing {
    let ours = letter.headers.iter().filter(|(name, _)| name.starts_with(HEADER_PREFIX));
    let mut headers: Vec<_> = ours.cloned().collect();
    headers.push((OVERSIZE.to_owned(), letter.payload.len().to_string().into()));
    let (destination, timestamp) = (letter.destination.clone(), letter.timestamp);
    Outgoing { destination, headers, timestamp, ..Outgoing::default() }
}

fn truncate(text: &str) -> &str {
    let mut end = text.len().min(MAX_ERROR_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
