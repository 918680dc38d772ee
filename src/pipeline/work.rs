//! A delivery on its way through the pipeline, in one type for each state.
//!
//! ```text
//! Delivery ──intake──▶ Work ──claim──▶ Start ──handle──▶ Finished ──record──▶ Recorded ──settle──▶ Report
//!                       │               │                  │                   │                    │
//!                       │               │ Run: claimed     │ + Outcome: how    │ + Verdict: what    │ key, lane, size,
//!                       │               │ Wait: a suspect, │ the run ended     │ follows; durable   │ for the dispatcher
//!                       │               │   not its turn   │                   │                    ▼
//!                       │               │ Known: no run    │                   │     settled: copies follow, lane goes on
//!                       ▼                                                            again: the Work returns
//!               waits in the dispatcher: lane, leader or copy, timer, suspect, unanswered
//! ```
//!
//! A [`Work`] owns its receipt from intake to settlement: a delivery that is dropped anywhere on this way is abandoned,
//! and the broker redelivers it.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::field::DisplayValue;

use super::receipt::Receipt;
use crate::active_claim::SharedClaim;
use crate::handler::HandlerError;
use crate::key::{Fingerprint, Key};
use crate::message::{Message, Position};
use crate::store::{Exhausted, OwnerToken, Reason};
use crate::telemetry::Counter;

/// A delivery the pipeline has taken responsibility for. Boxed, since it moves through many queues: moving it by value
/// was a fifth of the pipeline's time.
pub(crate) type Work = Box<InFlight>;

/// See [`Work`].
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) message: Message,
    pub(crate) receipt: Receipt,
    pub(crate) plan: Plan,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) generation: u32,
    /// It looks like a letter of ours and nothing proves it: if its key is dead, it may be one nevertheless.
    pub(crate) unproven: bool,
    /// Its key is dead and it is no copy of what died: it is dead-lettered again.
    pub(crate) again: bool,
    pub(crate) lane: Option<u64>,
    pub(crate) size: usize,
    /// The number of the batch that it was received in; given by the dispatcher.
    pub(crate) batch: u64,
    /// Kept while the outcome of a claim is unknown, so that its repeat recognises itself.
    pub(crate) owner: Option<OwnerToken>,
    /// Set while this delivery leads its key: copies that arrive meanwhile follow it.
    pub(crate) leads: bool,
    /// Set once its attempts are used up and a policy keeps it in the source.
    pub(crate) parked: bool,
    /// Publishes of its dead letter that failed.
    pub(crate) letter_failures: u32,
    /// Failed runs without a claim, and the times it was held: both are counted in memory only.
    pub(crate) unprotected_failures: u32,
    pub(crate) holds: u32,
    pub(crate) last_delay: Duration,
    /// How often in a row the store did not answer for its key.
    pub(crate) store_tries: u32,
    /// How many claims of its key have lapsed, as far as this process knows. From 1 on it is a suspect.
    pub(crate) lost: u32,
    /// Set while it is a suspect's turn.
    pub(crate) turn: Option<Turn>,
    /// Set while it probes whether the handler works again: the number of the breaker's opening.
    pub(crate) probe: Option<u64>,
    /// How many runs of this pipeline had succeeded when a run of it first found the handler unavailable and left its
    /// outcome unknown.
    pub(crate) in_doubt_since: Option<u64>,
    /// How long at least to wait before the next run, as the last one has asked for.
    pub(crate) not_before: Duration,
    /// Set while another process holds its key: when that lease ends.
    pub(crate) held_until: Option<Instant>,
    /// When it was received, until its key is claimed for the first time; kept only if there is an observer.
    pub(crate) unclaimed_since: Option<Instant>,
    /// Set in observe mode once the store has answered for its key: its retries are no further sightings.
    pub(crate) sighted: bool,
    /// The reply that it waits for before it is acked, once its result is known; only where replies are sent.
    pub(crate) owed: Option<Box<OwedReply>>,
    /// Set once its run has succeeded without a claim: there is no record of it, which its copies could find.
    pub(crate) is_unrecorded: bool,
    /// Counted as waiting; kept by the dispatcher's window.
    pub(crate) waits: bool,
}

/// The reply that a delivery waits for before it is acked.
pub(crate) struct OwedReply {
    pub(crate) key: Option<Key>,
    pub(crate) result: Option<Bytes>,
    /// True if the store answers each claim of the key with this result.
    pub(crate) is_kept: bool,
    /// Set once it is sent or given up: no reply is owed any more, and copies of the delivery may be sent the same.
    pub(crate) is_done: bool,
    /// Set once the broker has refused it.
    pub(crate) is_refused: bool,
    /// What the delivery is counted as once its reply is sent; known when a reply has failed.
    pub(crate) end: Option<Counter>,
}

impl OwedReply {
    pub(crate) fn new(key: Option<Key>, result: Option<Bytes>, is_kept: bool) -> Self {
        Self { key, result, is_kept, is_done: false, is_refused: false, end: None }
    }
}

impl fmt::Debug for OwedReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.result.as_ref().map(Bytes::len);
        f.debug_struct("OwedReply").field("key", &self.key).field("bytes", &bytes).finish_non_exhaustive()
    }
}

/// The room that a delivery takes in the window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    pub(crate) epoch: u64,
    pub(crate) batch: u64,
    pub(crate) size: usize,
}

/// How a suspect runs: a key of which claims have lapsed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// No other suspect runs, and a write marks the run as started: a lapse from then on is charged to it.
    Alone,
    /// Beside other suspects and unmarked: a lapse is charged to none of them.
    Beside,
}

/// What shall be done with a delivery once it is its turn.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    /// Find the key first: the payload is large.
    Identify,
    /// Claim the key, then run.
    Claim(Key),
    /// Run without a claim: a policy allows it.
    Unprotected,
    /// Dead-letter it without a run.
    Letter(Reason, String),
    /// Refuse it.
    Reject,
    /// Ack it: its record is durable, and only its place in the order kept it from being settled.
    Ack(Counter),
}

impl InFlight {
    /// A delivery as it is received: neither its key nor its lane is known.
    pub(crate) fn new(message: Message, receipt: Receipt) -> Self {
        Self {
            size: message.size(),
            message,
            receipt,
            plan: Plan::Identify,
            fingerprint: None,
            generation: 0,
            unproven: false,
            again: false,
            lane: None,
            batch: 0,
            owner: None,
            leads: false,
            parked: false,
            letter_failures: 0,
            unprotected_failures: 0,
            holds: 0,
            last_delay: Duration::ZERO,
            store_tries: 0,
            lost: 0,
            turn: None,
            probe: None,
            in_doubt_since: None,
            not_before: Duration::ZERO,
            held_until: None,
            unclaimed_since: None,
            sighted: false,
            owed: None,
            is_unrecorded: false,
            waits: false,
        }
    }

    pub(crate) fn footprint(&self) -> Footprint {
        Footprint { epoch: self.receipt.tag().epoch, batch: self.batch, size: self.size }
    }

    pub(crate) fn key(&self) -> Option<Key> {
        match self.plan {
            Plan::Claim(key) => Some(key),
            _ => None,
        }
    }

    /// The key as `keys list` prints it, for log lines.
    pub(crate) fn log_key(&self) -> Option<DisplayValue<Key>> {
        self.key().map(tracing::field::display)
    }

    /// The position of the message in its source, for log lines.
    pub(crate) fn log_position(&self) -> Option<DisplayValue<&Position>> {
        self.message.position().map(tracing::field::display)
    }

    /// The message id of a message without a position, for log lines: its first 64 characters.
    pub(crate) fn log_id(&self) -> Option<String> {
        let id = self.message.id().filter(|_| self.message.position().is_none())?;
        Some(String::from_utf8_lossy(&id[..id.len().min(256)]).chars().take(64).collect())
    }
}

/// A delivery whose handler may run, or of which is known already what to record.
pub(crate) enum Start {
    /// `suspect`: its run is marked as started first.
    Run {
        work: Work,
        claim: SharedClaim,
        suspect: bool,
    },
    /// A suspect that has to wait for its turn: its claim is released.
    Wait {
        work: Work,
        claim: SharedClaim,
    },
    Known {
        work: Work,
        outcome: Outcome,
    },
}

impl Start {
    pub(crate) fn work(&self) -> &Work {
        match self {
            Self::Run { work, .. } | Self::Wait { work, .. } | Self::Known { work, .. } => work,
        }
    }

    /// The claim under which its handler is to run.
    pub(crate) fn claim(&self) -> Option<&SharedClaim> {
        match self {
            Self::Run { claim, .. } => Some(claim),
            Self::Wait { .. } | Self::Known { .. } => None,
        }
    }
}

/// A delivery whose key is claimed.
pub(crate) type ClaimedWork = (Work, SharedClaim);

/// A delivery whose run has ended.
pub(crate) struct Finished {
    pub(crate) work: Work,
    pub(crate) claim: Option<SharedClaim>,
    pub(crate) outcome: Outcome,
}

/// How a run ended, or why there was none.
pub(crate) enum Outcome {
    /// The handler returned this; the completion is still to be written.
    Succeeded(Option<Bytes>),
    /// Effect and completion were committed together.
    Committed,
    /// A newer claim holds the key: the transaction was rolled back, or the run never started.
    Fenced,
    /// The transaction's commit was sent and its reply lost: the next claim finds the outcome.
    Unknown,
    /// The handler failed.
    Failed(HandlerError),
    /// No run: the key is claimed for dead-lettering only. Boxed, since each outcome would be as large.
    Exhausted(Box<Exhausted>),
    /// No run: to be dead-lettered without a claim.
    Letter(Reason, String),
    /// No run: what follows is known.
    Decided(Verdict),
    /// No run: the claim is to be released unstarted.
    Unstarted,
}

/// What follows for a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Ack it. Only for the reasons of the ack rule, each counted under its own name.
    Ack(Counter),
    /// Refuse it, by policy.
    Reject,
    /// Keep the delivery and try again.
    Again { after: Duration },
    /// Keep the delivery and try again; those behind it in its lane go on meanwhile.
    Parked { after: Duration },
    /// Keep the delivery: the store did not answer for its key.
    StoreDown,
    /// Give it back to a broker that can wait.
    GiveBack { after: Duration },
    /// Give it back at once: the program is ending.
    Abandon,
}

/// A delivery that returns to its lane, behind one that has to be settled before it.
pub(crate) struct Behind {
    pub(crate) work: Work,
    /// What is left to do with it, if that has changed meanwhile.
    pub(crate) plan: Option<Plan>,
}

/// A delivery and what follows for it; the record of it is durable.
pub(crate) struct Recorded {
    pub(crate) work: Work,
    pub(crate) verdict: Verdict,
}
