//! Keys and dead letters as an observer receives them: [`KeySighting`], [`LetterSighting`].

use std::time::Duration;

use crate::key::{Fingerprint, Key};
use crate::store::Reason;

/// The first answer of the store for the key of a delivery, in [observe mode](crate::pipeline::config::Mode::Observe).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct KeySighting {
    /// The key.
    pub key: Key,
    /// The fingerprint of the payload; `None` if fingerprints are off.
    pub fingerprint: Option<Fingerprint>,
    /// What the store knew of the key.
    pub known: KnownAs,
}

/// What a store knew of a key before a delivery of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KnownAs {
    /// No effect: the delivery runs in every mode.
    New,
    /// Completed this long ago, by the clock of the store: the delivery is a duplicate.
    Completed(Duration),
    /// Claimed by a delivery that is still being handled: this one is a duplicate of it, unless that one fails.
    InProgress,
    /// Dead-lettered: a copy of a message that failed for good.
    Dead,
    /// Known with another payload: two messages share the key.
    Mismatch,
}

impl KeySighting {
    /// A sighting, for tests of an observer.
    pub fn new(key: Key, fingerprint: Option<Fingerprint>, known: KnownAs) -> Self {
        Self { key, fingerprint, known }
    }
}

/// A dead letter that its destination has confirmed. It has no part of the message's content.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LetterSighting<'m> {
    /// The id of the letter, as `dlq list` shows it: made of the key, the generation and a hash of the payload.
    pub id: &'m str,
    /// The key; `None` for a message without a usable one.
    pub key: Option<Key>,
    /// Why the message failed for good.
    pub reason: Reason,
    /// The queue, topic or file that the message came from.
    pub origin: Option<&'m str>,
}

impl<'m> LetterSighting<'m> {
    /// A sighting, for tests of an observer.
    pub fn new(id: &'m str, key: Option<Key>, reason: Reason, origin: Option<&'m str>) -> Self {
        Self { id, key, reason, origin }
    }
}
