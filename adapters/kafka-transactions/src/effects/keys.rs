//! Deduplication by key beside positions: [`EffectKeys`], and the decision about each record of a transaction.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use onceward::pipeline::config::{OnMismatch, OnMissingKey};
use onceward::store::{Entropy, KeyMark, MarkedKey, PositionStore, Reason};
use onceward::{Error, ErrorKind, Fingerprint, KeyExtractor, Message, Scope};

/// How the keys of records are extracted and stored: the dedup mode *both*. Records that a producer has sent twice, to any
/// partitions, have one effect.
///
/// A key is completed by the transaction of its effect, without an earlier claim; of two such transactions one waits for the
/// other. Positions take precedence: the key of a record whose position is known is not checked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EffectKeys {
    /// The sources of keys, in the scope of the run.
    pub from: KeyExtractor,
    /// How long a completed key is stored, at least 1 ms; default 7 d. A copy that arrives later is a new record.
    pub ttl: Duration,
    /// The policy for records without a key. `Reject` skips them: no effect, and the position is stored. `Hash` dead-letters records
    /// with an [unusable](onceward::KeyError::is_unusable) key.
    pub on_missing_key: OnMissingKey,
    /// The policy for keys that are stored with another payload.
    pub on_mismatch: OnMismatch,
}

impl EffectKeys {
    /// Extracts keys with `from`, with the defaults.
    pub fn new(from: KeyExtractor) -> Self {
        let (on_missing_key, on_mismatch) = Default::default();
        Self { from, ttl: Duration::from_secs(7 * 24 * 3600), on_missing_key, on_mismatch }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let invalid =
            |what: &'static str| Err(Error::new(ErrorKind::Config, "configure the keys of records", what));
        if self.ttl < Duration::from_millis(1) {
            return invalid(
                "the ttl of keys must be at least 1 ms; set it longer than a producer may take to send a copy",
            );
        }
        if self.from.sources().next().is_none() {
            return invalid("no source of keys is configured; set one, or omit the keys");
        }
        Ok(())
    }

    pub(super) fn check_scope(&self, scope: &Scope) -> Result<(), Error> {
        let own = self.from.scope();
        if own == scope {
            return Ok(());
        }
        let what = format!("the scope of the keys is {own}, and that of the run {scope}; use the same scope");
        Err(Error::new(ErrorKind::Config, "configure the keys of records", what))
    }
}

/// The decision about a record in an open transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyDecision {
    /// The handler runs in this transaction.
    Run,
    /// Another record with its key had the effect, or has it in this transaction.
    Duplicate,
    /// No effect, by policy.
    Reject,
    /// Its key is claimed elsewhere; the remaining lease.
    Wait(Duration),
    /// It failed permanently, without a run.
    DeadLetter(Reason, String),
    /// Decidable only in a transaction of its own.
    Alone,
}

/// Completes the keys of records within their transactions.
pub(super) struct KeyMarker {
    keys: EffectKeys,
    entropy: Mutex<Entropy>,
}

impl KeyMarker {
    pub(super) fn new(keys: EffectKeys) -> Self {
        Self { keys, entropy: Mutex::new(Entropy::system()) }
    }

    /// Completes the keys of `messages` within `open`. Returns the decision about each, in order. Of several messages with one key
    /// the first decides.
    pub(super) async fn mark<S: PositionStore>(
        &self,
        store: &S,
        open: S::Conn,
        scope: &Scope,
        messages: &[&Message],
    ) -> Result<(S::Conn, Vec<KeyDecision>), Error> {
        let mut marks = Vec::<KeyMark>::with_capacity(messages.len());
        let plans = self.plans(messages, &mut marks);
        let (open, found) = store.mark_keys(open, scope, self.keys.ttl, &marks).await?;
        let decisions = plans.into_iter().map(|plan| match plan {
            KeyPlan::Decided(fate) => fate,
            KeyPlan::First(index) => found.get(index).map_or(KeyDecision::Alone, |found| self.decide(*found)),
            KeyPlan::Repeated(index) => match found.get(index) {
                Some(MarkedKey::Fresh | MarkedKey::Completed | MarkedKey::Dead) => KeyDecision::Duplicate,
                _ => KeyDecision::Alone,
            },
        });
        Ok((open, decisions.collect()))
    }

    fn plans(&self, messages: &[&Message], marks: &mut Vec<KeyMark>) -> Vec<KeyPlan> {
        let mut entropy = self.entropy.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = HashMap::with_capacity(messages.len());
        let mut plan = |message: &Message| {
            // The run reports a defect.
            if message.defect().is_some() {
                return KeyPlan::Decided(KeyDecision::Run);
            }
            let key = match (self.keys.from.key_of(message), self.keys.on_missing_key) {
                (Ok(key), _) => key,
                (Err(error), OnMissingKey::Hash) if !error.is_unusable() => self.keys.from.fallback(message),
                (Err(_), OnMissingKey::Process) => return KeyPlan::Decided(KeyDecision::Run),
                (Err(_), OnMissingKey::Reject) => return KeyPlan::Decided(KeyDecision::Reject),
                (Err(error), OnMissingKey::DeadLetter | OnMissingKey::Hash) => {
                    return KeyPlan::Decided(KeyDecision::DeadLetter(Reason::MissingKey, error.to_string()));
                }
            };
            let compared = self.keys.on_mismatch != OnMismatch::Process;
            let fingerprint = compared.then(|| Fingerprint::of_json(message.payload()));
            match seen.get(&key) {
                Some((index, first)) if *first == fingerprint => KeyPlan::Repeated(*index),
                Some(_) => KeyPlan::Decided(KeyDecision::Alone),
                None => {
                    seen.insert(key, (marks.len(), fingerprint));
                    marks.push(KeyMark { key, owner: entropy.token(), fingerprint });
                    KeyPlan::First(marks.len() - 1)
                }
            }
        };
        messages.iter().map(|message| plan(message)).collect()
    }

    fn decide(&self, found: MarkedKey) -> KeyDecision {
        match found {
            MarkedKey::Fresh => KeyDecision::Run,
            MarkedKey::Completed | MarkedKey::Dead => KeyDecision::Duplicate,
            MarkedKey::InProgress { retry_in } => KeyDecision::Wait(retry_in),
            MarkedKey::Mismatch if self.keys.on_mismatch == OnMismatch::Ack => KeyDecision::Duplicate,
            MarkedKey::Mismatch => {
                let text =
                    "the key is stored with another payload: two different records share it".to_owned();
                KeyDecision::DeadLetter(Reason::Mismatch, text)
            }
        }
    }
}

enum KeyPlan {
    Decided(KeyDecision),
    /// The first record with its key; the index of the key's mark.
    First(usize),
    /// Another record with the same key and payload; the index of the key's mark.
    Repeated(usize),
}
