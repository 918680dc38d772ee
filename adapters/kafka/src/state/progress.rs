//! The assigned partitions as those see them that look after them: [`Place`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::state::Shared;
use crate::state::partition::Assigned;

/// How far an assigned partition was delivered.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) epoch: u64,
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    /// Behind what was delivered in this assignment; `None` if nothing was yet.
    pub(crate) next: Option<u64>,
    /// How long no record came.
    pub(crate) quiet: Duration,
    /// The end up to which there are no more records.
    pub(crate) searched: Option<u64>,
}

impl Shared {
    /// How many partitions are assigned.
    pub(crate) fn assigned(&self) -> usize {
        self.lock().assigned.len()
    }

    /// The assigned partitions that deliver.
    pub(crate) fn places(&self) -> Vec<Place> {
        let state = self.lock();
        let of = |(epoch, own): (&u64, &Assigned)| Place {
            epoch: *epoch,
            topic: Arc::clone(&own.topic),
            partition: own.number,
            next: own.watermark.next(),
            quiet: own.quiet_since.elapsed(),
            searched: own.searched,
        };
        let delivers = |own: &Assigned| {
            let waits = own.waits_until.is_some_and(|until| until > Instant::now());
            !(own.leaving || own.paused || own.doubtful || waits)
        };
        state.assigned.iter().filter(|(_, own)| delivers(own)).map(of).collect()
    }

    /// The partitions of which nothing is wanted for a while: the pipeline has paused them, they are being revoked, their next
    /// copy waits until it is due, more of their records wait for retries than fit into the buffer, or it is not known yet where
    /// they begin.
    pub(crate) fn waiting(&self) -> HashSet<(Arc<str>, i32)> {
        let now = Instant::now();
        let state = self.lock();
        let waits = |own: &&Assigned| {
            let is_full = own.delayed >= self.topics.buffer_messages;
            own.paused || own.leaving || is_full || own.waits_until.is_some_and(|until| until > now)
        };
        let of_assigned =
            state.assigned.values().filter(waits).map(|own| (Arc::clone(&own.topic), own.number));
        of_assigned.chain(state.pending.named()).collect()
    }

    /// There is no record from `from` up to `to`.
    pub(crate) fn passed(&self, place: &Place, from: u64, to: u64) {
        if let Some(assigned) = self.lock().assigned.get_mut(&place.epoch) {
            assigned.watermark.passed(from, to);
        }
    }

    /// Nothing more is to be found up to `end`.
    pub(crate) fn searched(&self, place: &Place, end: u64) {
        if let Some(assigned) = self.lock().assigned.get_mut(&place.epoch) {
            assigned.searched = Some(end);
        }
    }

    /// It was right that a partition delivered nothing so far.
    pub(crate) fn rested(&self, place: &Place) {
        if let Some(assigned) = self.lock().assigned.get_mut(&place.epoch) {
            assigned.quiet_since = Instant::now();
        }
    }

    /// A partition delivers nothing although it has records; how often that was so since the last one came.
    pub(crate) fn stalled(&self, place: &Place) -> u32 {
        let mut state = self.lock();
        let Some(assigned) = state.assigned.get_mut(&place.epoch) else { return 0 };
        assigned.quiet_since = Instant::now();
        assigned.stalls += 1;
        assigned.stalls
    }
}
