//! Events sent to the dispatcher by intake, rounds and the settler: [`Event`].

use std::time::Duration;

use super::breaker::{RunEnd, RunId};
use super::work::{Behind, Footprint, OwedReply, Turn, Verdict, Work};
use crate::key::{Fingerprint, Key};
use crate::store::TraceContext;

/// An event that the dispatcher acts on.
pub(crate) enum Event {
    /// Deliveries came in.
    Arrived(Vec<Work>),
    /// The key of a large message was looked for.
    Identified(Identified),
    /// The source is at its end.
    End,
    /// The source is idle; only sent if the pipeline shall stop then.
    Idle,
    /// The deliveries of this epoch belong to another consumer soon.
    Leaving { epoch: u64 },
    /// A round's claims were answered, or not; `None`: the store was not asked.
    Claimed { asked: Option<Asked>, again: bool },
    /// Runs have ended: their slots are free.
    Finished(Ended),
    /// Deliveries were settled, or are to be tried again.
    Settled(Vec<Report>),
    /// A sequence has ended.
    SequenceEnded(SequenceEnded),
    /// So many settlements have reached the broker, or were given up.
    Flushed(usize),
}

/// How runs ended, as far as slots, limits and the breaker are concerned.
#[derive(Default)]
pub(crate) struct Ended {
    /// Slots that are free again.
    pub(crate) count: usize,
    /// Of these, slots of suspects whose turn it was.
    pub(crate) suspects: usize,
    /// Handlers that ran.
    pub(crate) runs: usize,
    /// Deliveries that needed no run, or did not come to it.
    pub(crate) idle: usize,
    /// One of those that succeeded.
    pub(crate) succeeded: Option<RunId>,
    /// Those that failed, each with the breaker's opening whose probe it was.
    pub(crate) failed: Vec<(RunId, RunEnd, Option<u64>)>,
}

impl Ended {
    /// Adds runs that have ended since, none of which has failed.
    pub(crate) fn add(&mut self, later: Self) {
        let Self { count, suspects, runs, idle, succeeded, failed } = later;
        self.count += count;
        self.suspects += suspects;
        self.runs += runs;
        self.idle += idle;
        self.succeeded = succeeded.or(self.succeeded.take());
        self.failed.extend(failed);
    }
}

/// What became of a delivery.
pub(crate) struct Report {
    pub(crate) key: Option<Key>,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) generation: u32,
    pub(crate) lane: Option<u64>,
    pub(crate) footprint: Footprint,
    pub(crate) turn: Option<Turn>,
    pub(crate) verdict: Verdict,
    pub(crate) again: Option<Work>,
    /// True if it was handled without a record, which copies could find.
    pub(crate) is_unrecorded: bool,
    /// Its span, for the copies that follow it.
    pub(crate) trace: Option<TraceContext>,
    /// The reply that it was sent, for the copies that follow it.
    pub(crate) replied: Option<Box<OwedReply>>,
}

/// What is left of a sequence when all of it that could be settled is.
pub(crate) struct SequenceEnded {
    pub(crate) lane: u64,
    /// True if it was a turn of suspects.
    pub(crate) is_turn: bool,
    /// How many turns there were, and how long they took together.
    pub(crate) count: usize,
    pub(crate) took: Duration,
    /// The delivery at which it stopped, unless that is settled as well.
    pub(crate) first: Option<Report>,
    /// Those behind, in their order.
    pub(crate) behind: Vec<Behind>,
}

impl SequenceEnded {
    /// The end of a sequence of one delivery, which does not wait for its settlement.
    pub(crate) fn of_one(lane: u64, is_turn: bool) -> Self {
        Self { lane, is_turn, count: 0, took: Duration::ZERO, first: None, behind: Vec::new() }
    }
}

/// The result of one claim call.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Items that were answered, a damaged record included.
    pub(crate) answered: usize,
    /// Items that were not, of keys that the store has not failed to answer before.
    pub(crate) fresh_failures: usize,
    /// The first error, if an item was not answered.
    pub(crate) error: Option<String>,
}

/// A delivery whose key was looked for, and the memory that was set aside for it.
pub(crate) struct Identified {
    pub(crate) work: Work,
    pub(crate) memory: usize,
}
