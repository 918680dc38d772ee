//! The keys of records, beside their positions: [`EffectKeys`], and what is to be done with each record of a transaction.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use onceward::pipeline::config::{OnMismatch, OnMissingKey};
use onceward::store::{Entropy, KeyMark, MarkedKey, PositionStore, Reason};
use onceward::{Error, ErrorKind, Fingerprint, KeyExtractor, Message, Scope};

/// How the keys of records are found and kept: the dedup mode *both*. Records that a producer has sent twice, to whichever
/// partitions, have one effect.
///
/// A key is completed by the transaction of its effect, without a claim before it; of two such transactions one waits for the
/// other. Position first: for records whose position is known no key is looked at.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EffectKeys {
    /// Where keys are found, in the scope of the run.
    pub from: KeyExtractor,
    /// How long a completed key is known, from 1 ms; default 7 d. A copy that is sent later is a new record.
    pub ttl: Duration,
    /// For records without a key. `Reject` passes them over: no effect, and the position is noted. `Hash` dead-letters those whose
    /// key is there and [cannot be used](onceward::KeyError::is_unusable).
    pub on_missing_key: OnMissingKey,
    /// For keys that are known with another payload.
    pub on_mismatch: OnMismatch,
}

impl EffectKeys {
    /// Keys from `from`, with the defaults.
    pub fn new(from: KeyExtractor) -> Self {
        let (on_missing_key, on_mismatch) = Default::default();
        Self { from, ttl: Duration::from_secs(7 * 24 * 3600), on_missing_key, on_mismatch }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |what: &'static str| Err(Error::new(ErrorKind::Config, "keep the keys of records", what));
        if self.ttl < Duration::from_millis(1) {
            return wrong(
                "the keys' ttl is below 1 ms; make it longer than a producer may take to send a copy",
            );
        }
        if self.from.sources().next().is_none() {
            return wrong("no source of keys is given; name one, or leave the keys out");
        }
        Ok(())
    }

    pub(super) fn check_scope(&self, scope: &Scope) -> Result<(), Error> {
        let own = self.from.scope();
        if own == scope {
            return Ok(());
        }
        let what =
            format!("the keys are of scope {own}, and the run is of scope {scope}; make them the same");
        Err(Error::new(ErrorKind::Config, "keep the keys of records", what))
    }
}

/// What is to be done with a record in an open transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its effect belongs into this transaction.
    Run,
    /// A record with its key has had its effect, or has it in this transaction.
    Copy,
    /// No effect, by policy.
    Reject,
    /// Its key is claimed by another for so long.
    Wait(Duration),
    /// It has failed for good without a run.
    Letter(Reason, String),
    /// Only a transaction of its own can tell.
    Alone,
}

/// Marks the keys of records within their transactions.
pub(super) struct Marker {
    keys: EffectKeys,
    entropy: Mutex<Entropy>,
}

impl Marker {
    pub(super) fn new(keys: EffectKeys) -> Self {
        Self { keys, entropy: Mutex::new(Entropy::system()) }
    }

    /// Completes the keys of `messages` within `open`; what is to be done with each, in order. Of several with one key the
    /// first speaks for all.
    pub(super) async fn mark<S: PositionStore>(
        &self,
        store: &S,
        open: S::Conn,
        scope: &Scope,
        messages: &[&Message],
    ) -> Result<(S::Conn, Vec<Fate>), Error> {
        let mut marks = Vec::<KeyMark>::with_capacity(messages.len());
        let plans = self.plans(messages, &mut marks);
        let (open, found) = store.mark_keys(open, scope, self.keys.ttl, &marks).await?;
        let fates = plans.into_iter().map(|plan| match plan {
            Plan::Decided(fate) => fate,
            Plan::First(index) => found.get(index).map_or(Fate::Alone, |found| self.fate(*found)),
            Plan::Again(index) => match found.get(index) {
                Some(MarkedKey::Fresh | MarkedKey::Completed | MarkedKey::Dead) => Fate::Copy,
                _ => Fate::Alone,
            },
        });
        Ok((open, fates.collect()))
    }

    fn plans(&self, messages: &[&Message], marks: &mut Vec<KeyMark>) -> Vec<Plan> {
        let mut entropy = self.entropy.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = HashMap::with_capacity(messages.len());
        let mut plan = |message: &Message| {
            // A defect is the run's to tell.
            if message.defect().is_some() {
                return Plan::Decided(Fate::Run);
            }
            let key = match (self.keys.from.key_of(message), self.keys.on_missing_key) {
                (Ok(key), _) => key,
                (Err(error), OnMissingKey::Hash) if !error.is_unusable() => self.keys.from.fallback(message),
                (Err(_), OnMissingKey::Process) => return Plan::Decided(Fate::Run),
                (Err(_), OnMissingKey::Reject) => return Plan::Decided(Fate::Reject),
                (Err(error), OnMissingKey::DeadLetter | OnMissingKey::Hash) => {
                    return Plan::Decided(Fate::Letter(Reason::MissingKey, error.to_string()));
                }
            };
            let compared = self.keys.on_mismatch != OnMismatch::Process;
            let fingerprint = compared.then(|| Fingerprint::of_json(message.payload()));
            match seen.get(&key) {
                Some((index, first)) if *first == fingerprint => Plan::Again(*index),
                Some(_) => Plan::Decided(Fate::Alone),
                None => {
                    seen.insert(key, (marks.len(), fingerprint));
                    marks.push(KeyMark { key, owner: entropy.token(), fingerprint });
                    Plan::First(marks.len() - 1)
                }
            }
        };
        messages.iter().map(|message| plan(message)).collect()
    }

    fn fate(&self, found: MarkedKey) -> Fate {
        match found {
            MarkedKey::Fresh => Fate::Run,
            MarkedKey::Completed | MarkedKey::Dead => Fate::Copy,
            MarkedKey::InProgress { retry_in } => Fate::Wait(retry_in),
            MarkedKey::Mismatch if self.keys.on_mismatch == OnMismatch::Ack => Fate::Copy,
            MarkedKey::Mismatch => {
                let text = "the key is known with another payload: two different records share it".to_owned();
                Fate::Letter(Reason::Mismatch, text)
            }
        }
    }
}

enum Plan {
    Decided(Fate),
    /// The first of its key, which is the mark of this number.
    First(usize),
    /// One more, with the same payload.
    Again(usize),
}
