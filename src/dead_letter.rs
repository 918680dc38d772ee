//! What is published when a message failed for good, and how it is recognised when it comes back.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::key::{Key, Scope};
use crate::message::Message;
use crate::publisher::{Outgoing, Publisher};
use crate::store::Reason;

/// All headers that Onceward writes start with this.
pub const HEADER_PREFIX: &str = "onceward-";
/// The scope the letter belongs to.
pub const HEADER_SCOPE: &str = "onceward-scope";
/// The derived key, 32 hexadecimal digits.
pub const HEADER_KEY: &str = "onceward-key";
/// The generation of the key.
pub const HEADER_GENERATION: &str = "onceward-generation";
/// Why the message failed for good; see [`Reason`]. Its presence makes a message a dead letter.
pub const HEADER_REASON: &str = "onceward-reason";
/// The last error, at most 1,024 bytes.
pub const HEADER_ERROR: &str = "onceward-error";
/// Attempts used.
pub const HEADER_ATTEMPTS: &str = "onceward-attempts";
/// Claims that lapsed.
pub const HEADER_LOST: &str = "onceward-lost";
/// The queue, topic or file the message came from.
pub const HEADER_ORIGIN: &str = "onceward-origin";
/// Where it stood there: incarnation, partition and offset.
pub const HEADER_POSITION: &str = "onceward-position";
/// Our own id of a letter or retry, where the message id is the producer's.
pub const HEADER_ID: &str = "onceward-id";
/// The message id it came with.
pub const HEADER_MESSAGE_ID: &str = "onceward-message-id";
/// When the key was first claimed, in milliseconds since 1970.
pub const HEADER_FIRST_AT: &str = "onceward-first-at-ms";
/// When the letter was made, in milliseconds since 1970.
pub const HEADER_LAST_AT: &str = "onceward-last-at-ms";

/// Which of our own headers a letter bears: fewer where all of them make it too large for its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnHeaders {
    /// All.
    All,
    /// All but the error's text.
    NoError,
    /// What a redrive needs: scope, key, generation and reason.
    Needed,
}

impl OwnHeaders {
    pub(crate) const FROM_ALL_TO_FEW: [Self; 3] = [Self::All, Self::NoError, Self::Needed];
}

/// Where dead letters go.
#[derive(Clone)]
pub struct DeadLetters {
    publisher: Arc<dyn Publisher>,
    destination: String,
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetters").field("destination", &self.destination).finish_non_exhaustive()
    }
}

/// What is known of a failure for good.
#[derive(Clone, Debug)]
pub(crate) struct Obituary {
    pub(crate) reason: Reason,
    pub(crate) error: String,
    pub(crate) attempts: u32,
    pub(crate) lost: u32,
    pub(crate) generation: u32,
    pub(crate) first_age: Duration,
}

impl DeadLetters {
    /// Letters to `destination` (a queue, topic, queue URL or path, as the publisher understands it).
    pub fn new(publisher: Arc<dyn Publisher>, destination: impl Into<String>) -> Self {
        Self { publisher, destination: destination.into() }
    }

    pub(crate) fn publisher(&self) -> &Arc<dyn Publisher> {
        &self.publisher
    }

    /// The letter for `message`: its payload and headers, and what happened to it. The same message gives a letter
    /// with the same id each time, so that a repeated publish can be recognised.
    pub(crate) fn letter(
        &self,
        scope: &Scope,
        key: Option<Key>,
        message: &Message,
        why: &Obituary,
        own: OwnHeaders,
    ) -> Outgoing {
        let mut headers: Vec<(String, Bytes)> = message
            .headers()
            .filter(|(name, _)| !name.starts_with(HEADER_PREFIX))
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .collect();
        let now = SystemTime::now();
        let mut add = |name: &str, value: String| headers.push((name.to_owned(), value.into()));
        add(HEADER_SCOPE, scope.to_string());
        if let Some(key) = key {
            add(HEADER_KEY, key.to_string());
        }
        add(HEADER_GENERATION, why.generation.to_string());
        add(HEADER_REASON, why.reason.to_string());
        if own == OwnHeaders::All {
            add(HEADER_ERROR, cut(&why.error, 1024).to_owned());
        }
        if own != OwnHeaders::Needed {
            add(HEADER_ATTEMPTS, why.attempts.to_string());
            add(HEADER_LOST, why.lost.to_string());
            add(HEADER_FIRST_AT, millis(now.checked_sub(why.first_age).unwrap_or(UNIX_EPOCH)).to_string());
            add(HEADER_LAST_AT, millis(now).to_string());
            if let Some(origin) = message.origin() {
                add(HEADER_ORIGIN, origin.to_owned());
            }
            if let Some(position) = message.position() {
                add(HEADER_POSITION, position.to_string());
            }
            if let Some(id) = message.id() {
                headers.push((HEADER_MESSAGE_ID.to_owned(), Bytes::copy_from_slice(id)));
            }
        }
        Outgoing {
            destination: self.destination.clone(),
            id: message.id().and_then(|id| std::str::from_utf8(id).ok()).unwrap_or_default().to_owned(),
            own_id: letter_id(key, message, why),
            order_key: message.order_key().cloned(),
            headers,
            payload: message.payload().clone(),
            null_payload: message.has_null_payload(),
            timestamp: message.timestamp(),
            native: message.native().cloned(),
        }
    }
}

/// `KEY-GENERATION-PAYLOAD`, the latter a hash: messages that share a key may each die (a mismatch, runs without a claim),
/// and a destination that deduplicates by id must keep them apart. For a message without a key where it stood or, failing
/// that, a hash of its id and payload.
fn letter_id(key: Option<Key>, message: &Message, why: &Obituary) -> String {
    match (key, message.position()) {
        (Some(key), _) => format!("{key}-{}-{}", why.generation, &payload_hash(message)[..32]),
        (None, Some(position)) => {
            format!("position-{}-{}-{}", position.incarnation, position.partition, position.offset)
        }
        (None, None) => match message.id() {
            Some(id) => format!("message-{}-{}", blake3::hash(id).to_hex(), &payload_hash(message)[..32]),
            None => format!("payload-{}", payload_hash(message)),
        },
    }
}

/// 64 hexadecimal digits. No payload is not an empty one.
fn payload_hash(message: &Message) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(message.payload());
    if message.has_null_payload() {
        hasher.update(b"null");
    }
    hasher.finalize().to_hex().to_string()
}

fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn millis(at: SystemTime) -> u128 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// What our own headers say of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Republished {
    /// The key derived when the message first came.
    pub(crate) key: Option<Key>,
    /// The generation it is to run in: one more than that of a dead letter, whoever moved it back.
    pub(crate) generation: u32,
}

impl Republished {
    /// Reads our headers, if they are there and name our scope. Those of another scope are just headers.
    pub(crate) fn read(scope: &Scope, message: &Message) -> Option<Self> {
        let text = |name| message.header(name).and_then(|value| std::str::from_utf8(value).ok());
        if text(HEADER_SCOPE) != Some(scope.as_str()) {
            return None;
        }
        let generation: u32 = text(HEADER_GENERATION)?.parse().ok()?;
        let is_letter = message.header(HEADER_REASON).is_some();
        Some(Self {
            key: text(HEADER_KEY).and_then(Key::from_hex),
            generation: generation.saturating_add(u32::from(is_letter)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nowhere;

    #[async_trait::async_trait]
    impl Publisher for Nowhere {
        async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), crate::Error>> {
            batch.iter().map(|_| Ok(())).collect()
        }
    }

    #[test]
    fn a_letter_that_comes_back_is_a_redrive_in_the_next_generation() {
        let scope = Scope::parse("billing").unwrap();
        let letters = DeadLetters::new(Arc::new(Nowhere), "orders.dlq");
        let message = Message::builder("x").header("a", "b").header("onceward-reason", "forged").build();
        let key = Key::of(&scope, "1").unwrap();
        let why = Obituary {
            reason: Reason::Permanent,
            error: "ü".repeat(1000),
            attempts: 3,
            lost: 0,
            generation: 4,
            first_age: Duration::from_secs(9),
        };
        let letter = letters.letter(&scope, Some(key), &message, &why, OwnHeaders::All);
        assert_eq!(letter.headers.iter().filter(|(name, _)| name == HEADER_REASON).count(), 1);
        let back = letter
            .headers
            .iter()
            .fold(Message::builder(letter.payload), |message, (name, value)| {
                message.header(name.as_str(), value.clone())
            })
            .build();
        assert_eq!(Republished::read(&scope, &back), Some(Republished { key: Some(key), generation: 5 }));
        assert_eq!(Republished::read(&Scope::parse("mail").unwrap(), &back), None);
        assert_eq!(back.header(HEADER_ERROR).unwrap().len(), 1024);
    }
}
