//! The parts of a dead letter that all kinds of runs give it: [`LetterBuilder`].

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::headers::{
    HEADER_ATTEMPTS, HEADER_ERROR, HEADER_LAST_AT, HEADER_MESSAGE_ID, HEADER_ORIGIN, HEADER_POSITION,
    HEADER_PREFIX, HEADER_REASON,
};
use crate::message::Message;
use crate::publisher::Outgoing;
use crate::store::Reason;

/// The longest error text in a letter, in bytes.
const MAX_ERROR_BYTES: usize = 1024;

/// Builds a dead letter: the message as it was, with our headers beside the producer's.
///
/// A pipeline builds its letters itself; this is for runners beside it. Headers that begin with `onceward-` are not copied
/// from the message: a producer could have forged them.
///
/// ```
/// use onceward::Message;
/// use onceward::dead_letter::{HEADER_REASON, LetterBuilder};
/// use onceward::store::Reason;
///
/// let message = Message::builder("payload").header("a", "b").build();
/// let letter = LetterBuilder::new(&message)
///     .reason(Reason::Permanent)
///     .error("no such customer")
///     .attempts(3)
///     .failed_at(std::time::SystemTime::now())
///     .origin()
///     .message_id()
///     .to("orders.dead");
/// assert_eq!(letter.destination, "orders.dead");
/// assert!(letter.headers.iter().any(|(name, _)| name == HEADER_REASON));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct LetterBuilder<'m> {
    message: &'m Message,
    headers: Vec<(String, Bytes)>,
}

impl<'m> LetterBuilder<'m> {
    /// The payload of `message`, its headers but ours, and what the adapter keeps of it.
    pub fn new(message: &'m Message) -> Self {
        let headers = message
            .headers()
            .filter(|(name, _)| !name.starts_with(HEADER_PREFIX))
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .collect();
        Self { message, headers }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Why the message failed for good.
    pub fn reason(self, reason: Reason) -> Self {
        self.header(HEADER_REASON, reason.to_string())
    }

    /// The text of the last error, cut at 1,024 bytes.
    pub fn error(self, text: &str) -> Self {
        self.header(HEADER_ERROR, Bytes::copy_from_slice(cut(text, MAX_ERROR_BYTES).as_bytes()))
    }

    /// How often the handler has run.
    pub fn attempts(self, attempts: u32) -> Self {
        self.header(HEADER_ATTEMPTS, attempts.to_string())
    }

    /// When it failed for the last time.
    pub fn failed_at(self, at: SystemTime) -> Self {
        self.header(HEADER_LAST_AT, millis(at).to_string())
    }

    /// Where the message came from: its origin and its position, as far as it has them.
    pub fn origin(mut self) -> Self {
        let message = self.message;
        if let Some(origin) = message.origin() {
            self = self.header(HEADER_ORIGIN, origin.to_owned());
        }
        match message.position() {
            Some(position) => self.header(HEADER_POSITION, position.to_string()),
            None => self,
        }
    }

    /// The producer's message id, if there is one.
    pub fn message_id(self) -> Self {
        match self.message.id() {
            Some(id) => self.header(HEADER_MESSAGE_ID, Bytes::copy_from_slice(id)),
            None => self,
        }
    }

    /// The headers so far.
    pub(crate) fn headers(&self) -> &[(String, Bytes)] {
        &self.headers
    }

    /// The letter to `destination`: a queue, topic, queue URL or path, as its publisher understands it.
    pub fn to(self, destination: impl Into<String>) -> Outgoing {
        let Self { message, headers } = self;
        Outgoing {
            destination: destination.into(),
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
}

/// Milliseconds since 1970.
pub(crate) fn millis(at: SystemTime) -> u128 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
