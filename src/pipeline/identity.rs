//! Derives key, fingerprint and generation of a message, and the plan for it: [`identify`].

use super::config::{Mode, OnMissingKey};
use super::context::Context;
use super::work::Plan;
use crate::dead_letter::Provenance;
use crate::key::{Fingerprint, Key, KeyError, canonical_memory};
use crate::message::Message;
use crate::store::Reason;
use crate::telemetry::{Counter, Counters};

/// How many bytes of memory it takes to [identify] a message, besides its own.
pub(super) fn memory_for<R>(context: &Context<R>, message: &Message) -> usize {
    let by_hash =
        context.keys.hashes_payload() || context.config.policies.on_missing_key == OnMissingKey::Hash;
    let needed = by_hash || context.config.fingerprint.reads_json();
    if needed { canonical_memory(message.payload().len()) } else { 0 }
}

/// The plan for a message, and the values that its content and headers give for it.
pub(super) struct Identity {
    pub(super) plan: Plan,
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) generation: u32,
    /// It looks like a letter or retry of ours, and nothing proves it.
    pub(super) unproven: bool,
}

impl Identity {
    pub(super) fn without_key(plan: Plan) -> Self {
        Self { plan, fingerprint: None, generation: 0, unproven: false }
    }
}

/// What is kept from message to message while keys are derived.
#[derive(Default)]
pub(super) struct Deriving {
    /// Room for what is hashed.
    parts: Vec<u8>,
    /// The latest source of a key, and how many keys in a row it has given that are not yet counted.
    source: usize,
    found: u64,
}

impl Deriving {
    /// A long key must not keep its memory forever.
    const KEPT: usize = 1_024;

    fn found(&mut self, counters: &Counters, source: usize) {
        if source != self.source {
            self.count(counters);
            self.source = source;
        }
        self.found += 1;
    }

    /// Counts the keys that were found: after each batch.
    pub(super) fn count(&mut self, counters: &Counters) {
        counters.count_key_source(self.source, std::mem::take(&mut self.found));
        self.parts.clear();
        self.parts.shrink_to(Self::KEPT);
    }
}

/// As [`identify`], of a message that comes alone.
pub(super) fn identify_one<R>(context: &Context<R>, message: &Message) -> Identity {
    let mut deriving = Deriving::default();
    let identity = identify(context, message, &mut deriving);
    deriving.count(&context.counters);
    identity
}

/// Decides what to do with a message.
pub(super) fn identify<R>(context: &Context<R>, message: &Message, deriving: &mut Deriving) -> Identity {
    let provenance = Provenance::of(&context.scope, message, &context.config.own_headers);
    let unproven = provenance == Provenance::Unproven;
    if unproven {
        context.note_unproven(message);
    }
    let (plan, generation) = plan(context, message, provenance, deriving);
    let wanted = matches!(plan, Plan::Claim(_));
    let fingerprint = if wanted { context.config.fingerprint.of(message.payload()) } else { None };
    Identity { plan, fingerprint, generation, unproven }
}

fn plan<R>(
    context: &Context<R>,
    message: &Message,
    provenance: Provenance,
    deriving: &mut Deriving,
) -> (Plan, u32) {
    if let Some(defect) = message.defect() {
        return (Plan::Letter(Reason::Defect, defect.to_string()), 0);
    }
    let ours = match provenance {
        Provenance::Ours(ours) => Some(ours),
        Provenance::Plain | Provenance::Unproven => None,
    };
    let generation = ours.map_or(0, |ours| ours.generation);
    if let Some(key) = ours.and_then(|ours| ours.key) {
        return (Plan::Claim(key), generation);
    }
    let error = match key_of(context, message, deriving) {
        Ok(key) => return (Plan::Claim(key), generation),
        Err(error) => error,
    };
    (without_key(context, message, &error), generation)
}

/// The plan for a message without a key.
pub(super) fn without_key<R>(context: &Context<R>, message: &Message, error: &KeyError) -> Plan {
    context.count(Counter::MissingKeys, 1);
    tracing::debug!(delivery = ?message, %error, "message without a usable key");
    match context.config.policies.on_missing_key {
        // Observing changes nothing for any message.
        _ if context.config.mode == Mode::Observe => Plan::Unprotected,
        OnMissingKey::Hash if !error.is_unusable() => Plan::Claim(context.keys.fallback(message)),
        // Around one value there are any number of payloads: by their hashes, its effect would happen as often.
        OnMissingKey::DeadLetter | OnMissingKey::Hash => Plan::Letter(Reason::MissingKey, error.to_string()),
        OnMissingKey::Process => Plan::Unprotected,
        OnMissingKey::Reject => Plan::Reject,
    }
}

/// The key of `message` from the first source that is present.
fn key_of<R>(context: &Context<R>, message: &Message, deriving: &mut Deriving) -> Result<Key, KeyError> {
    let found = context.keys.key_and_source_in(message, &mut deriving.parts);
    let index = found.as_ref().map_or(usize::MAX, |(_, index)| *index);
    if index != usize::MAX {
        deriving.found(&context.counters, index);
    }
    // The first source is the common case and needs no warning.
    if index > 0 {
        context.log.keys.warn_of_fallback(&context.scope, &context.keys, message, index);
    }
    found.map(|(key, _)| key)
}
