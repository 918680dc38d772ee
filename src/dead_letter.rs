//! Dead letters: how they are built, and how they are recognised when they are redelivered.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use crate::headers::{
    HEADER_ATTEMPTS, HEADER_ERROR, HEADER_FIRST_AT, HEADER_GENERATION, HEADER_ID, HEADER_KEY, HEADER_LAST_AT,
    HEADER_LOST, HEADER_MAC, HEADER_MESSAGE_ID, HEADER_ORIGIN, HEADER_POSITION, HEADER_PREFIX, HEADER_REASON,
    HEADER_SCOPE, HEADER_TIMESTAMP,
};
use crate::key::{Key, Scope};
pub use crate::letter_builder::LetterBuilder;
use crate::letter_builder::millis;
use crate::message::Message;
use crate::own_headers::{LETTER, OwnHeaders};
use crate::publisher::{Outgoing, Publisher};
use crate::store::{MAX_GENERATION, Reason};

/// Which of our own headers a letter carries: fewer where all of them make it too large for its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All.
    All,
    /// All but the error's text.
    NoError,
    /// Those that a redrive needs: scope, key, generation and reason.
    Needed,
}

impl Extent {
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

/// The known facts about a permanent failure.
#[derive(Clone, Debug)]
pub(crate) struct FailureReport {
    pub(crate) reason: Reason,
    pub(crate) error: String,
    pub(crate) attempts: u32,
    pub(crate) lost: u32,
    pub(crate) generation: u32,
    pub(crate) first_age: Duration,
    /// Its key was dead before: this is no copy of the letter of that time.
    pub(crate) again: bool,
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
        why: &FailureReport,
        extent: Extent,
        own: &OwnHeaders,
    ) -> Outgoing {
        let now = SystemTime::now();
        let mut letter = LetterBuilder::new(message).header(HEADER_SCOPE, scope.to_string());
        if let Some(key) = key {
            letter = letter.header(HEADER_KEY, key.to_string());
        }
        letter = letter.header(HEADER_GENERATION, why.generation.to_string()).reason(why.reason);
        if extent == Extent::All {
            letter = letter.error(&why.error);
        }
        if extent != Extent::Needed {
            let first = now.checked_sub(why.first_age).unwrap_or(UNIX_EPOCH);
            letter = letter
                .attempts(why.attempts)
                .header(HEADER_LOST, why.lost.to_string())
                .header(HEADER_FIRST_AT, millis(first).to_string())
                .failed_at(now)
                .origin();
        }
        // Those that a publisher may add later must be present when it is sealed.
        if extent != Extent::Needed || own.seals() {
            letter = letter.message_id();
        }
        if let Some(at) = message.timestamp().filter(|_| own.seals()) {
            letter = letter.header(HEADER_TIMESTAMP, millis(at).to_string());
        }
        let own_id = letter_id(key, message, why);
        let payload = (!message.has_null_payload()).then_some(&message.payload()[..]);
        let to_seal = || {
            let own_id = std::iter::once((HEADER_ID, own_id.as_bytes()));
            letter.headers().iter().map(|(name, value)| (name.as_str(), &value[..])).chain(own_id)
        };
        if let Some((name, value)) = own.seal_parts(&LETTER, to_seal, payload) {
            letter = letter.header(name, value);
        }
        Outgoing { own_id, ..letter.to(self.destination.as_str()) }
    }
}

/// `KEY-GENERATION-PAYLOAD`, the latter a hash: messages that share a key may each die (a mismatch, runs without a claim),
/// and a destination that deduplicates by id must keep them apart. Where the key was dead before, the hash also covers
/// what distinguishes this copy from others. For a message without a key it is its position or, failing that, a hash of
/// its id and payload.
fn letter_id(key: Option<Key>, message: &Message, why: &FailureReport) -> String {
    match (key, message.position()) {
        (Some(key), position) if why.again => {
            let mut hasher = blake3::Hasher::new();
            hasher.update(payload_hash(message).as_bytes());
            hasher.update(blake3::hash(message.id().unwrap_or_default()).as_bytes());
            hasher.update(position.map(ToString::to_string).unwrap_or_default().as_bytes());
            format!("{key}-{}-{}", why.generation, &hasher.finalize().to_hex()[..32])
        }
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

/// The content of our own headers on a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Republished {
    /// The key derived when the message first came; of a mismatch, the key of this message under that.
    pub(crate) key: Option<Key>,
    /// The generation it is to run in: one more than that of a dead letter, no matter how it was moved back.
    pub(crate) generation: u32,
}

/// The interpretation of the headers of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Provenance {
    /// None of our headers, or those of another scope: just headers.
    Plain,
    /// A letter or retry of ours.
    Ours(Republished),
    /// It looks like a letter or retry of ours and nothing proves it: its headers count for nothing.
    Unproven,
}

impl Provenance {
    /// Reads our headers, if they are present and name our scope.
    pub(crate) fn of(scope: &Scope, message: &Message, own: &OwnHeaders) -> Self {
        let text = |name| message.header(name).and_then(|value| std::str::from_utf8(value).ok());
        if text(HEADER_SCOPE) != Some(scope.as_str()) || message.header(HEADER_GENERATION).is_none() {
            return Self::Plain;
        }
        let reason = text(HEADER_REASON);
        let died = || text(HEADER_GENERATION)?.parse::<u32>().ok();
        let carried =
            || died()?.checked_add(u32::from(reason.is_some())).filter(|own| *own <= MAX_GENERATION);
        let Some(generation) = carried().filter(|_| own.believes(&LETTER, message)) else {
            return Self::Unproven;
        };
        let key = text(HEADER_KEY).and_then(Key::from_hex);
        if reason == Some(Reason::Mismatch.as_str()) {
            // The key is another message's, and stays so. By itself this one has not died yet.
            let key = key.map(|key| key.of_payload(message.payload()));
            return Self::Ours(Republished { key, generation: 0 });
        }
        Self::Ours(Republished { key, generation })
    }
}

impl Outgoing {
    /// True if the header `name` of [`headers`](Self::headers) is sent instead of that of the native form: trace context,
    /// which names the run that publishes the message. A dead letter has it as it was.
    pub fn replaces_native(&self, name: &str) -> bool {
        let has = |name: &str| self.headers.iter().any(|(own, _)| own == name);
        ["traceparent", "tracestate"].contains(&name) && has(name) && !has(HEADER_REASON)
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
        let why = FailureReport {
            reason: Reason::Permanent,
            error: "ü".repeat(1000),
            attempts: 3,
            lost: 0,
            generation: 4,
            first_age: Duration::from_secs(9),
            again: false,
        };
        let own = OwnHeaders::trusted();
        let letter = letters.letter(&scope, Some(key), &message, &why, Extent::All, &own);
        assert_eq!(letter.headers.iter().filter(|(name, _)| name == HEADER_REASON).count(), 1);
        let back = letter
            .headers
            .iter()
            .fold(Message::builder(letter.payload), |message, (name, value)| {
                message.header(name.as_str(), value.clone())
            })
            .build();
        let ours = Provenance::Ours(Republished { key: Some(key), generation: 5 });
        assert_eq!(Provenance::of(&scope, &back, &own), ours);
        assert_eq!(Provenance::of(&scope, &back, &OwnHeaders::default()), Provenance::Unproven);
        assert_eq!(Provenance::of(&Scope::parse("mail").unwrap(), &back, &own), Provenance::Plain);
        assert_eq!(back.header(HEADER_ERROR).unwrap().len(), 1024);
    }
}
