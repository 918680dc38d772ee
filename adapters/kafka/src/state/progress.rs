//! A snapshot of each assigned partition's progress, for the stall detector: [`PartitionProgress`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::state::ConsumerState;
use crate::state::partition::AssignedPartition;

/// How far the records of an assigned partition were delivered.
#[derive(Debug)]
pub(crate) struct PartitionProgress {
    pub(crate) epoch: u64,
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    /// One more than the last delivered offset of this assignment; `None` before the first.
    pub(crate) next: Option<u64>,
    /// The time since the last record.
    pub(crate) quiet: Duration,
    /// The end of the log up to which no more records were found.
    pub(crate) searched_to: Option<u64>,
}

impl ConsumerState {
    /// Returns the progress of the partitions that should deliver.
    pub(crate) fn progress(&self, now: Instant) -> Vec<PartitionProgress> {
        let delivers = |own: &AssignedPartition| {
            let waits = own.delayed_until.is_some_and(|until| until > now);
            !(own.leaving || own.paused || own.doubtful || waits)
        };
        let snapshot = |(epoch, own): (&u64, &AssignedPartition)| PartitionProgress {
            epoch: *epoch,
            topic: Arc::clone(&own.topic),
            partition: own.number,
            next: own.watermark.next(),
            quiet: now.saturating_duration_since(own.quiet_since),
            searched_to: own.searched_to,
        };
        self.partitions.iter().filter(|(_, own)| delivers(own)).map(snapshot).collect()
    }

    /// Moves the watermark over offsets without records.
    pub(crate) fn skip(&mut self, epoch: u64, from: u64, to: u64) {
        if let Some(own) = self.partitions.get_mut(&epoch) {
            own.watermark.skip(from, to);
        }
    }

    /// Records that no more records exist up to `end`.
    pub(crate) fn set_searched(&mut self, epoch: u64, end: u64) {
        if let Some(own) = self.partitions.get_mut(&epoch) {
            own.searched_to = Some(end);
        }
    }

    /// Records that a partition delivered nothing because there is nothing to deliver.
    pub(crate) fn reset_quiet(&mut self, epoch: u64, now: Instant) {
        if let Some(own) = self.partitions.get_mut(&epoch) {
            own.quiet_since = now;
        }
    }

    /// Records a partition that delivers nothing although it has records. Returns the number of stalls since its last record.
    pub(crate) fn record_stall(&mut self, epoch: u64, now: Instant) -> u32 {
        let Some(own) = self.partitions.get_mut(&epoch) else { return 0 };
        own.quiet_since = now;
        own.stalls += 1;
        own.stalls
    }
}
