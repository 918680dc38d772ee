//! Doubts about the log of an assigned partition, and its replacement by a new log under a new epoch.
//!
//! An offset below a delivered one, another topic id, or a log that is reported for a second to end before delivered records
//! makes a partition *doubtful*: nothing more of it is delivered or committed. The monitor observes the current log, and the poll
//! thread restarts the partition under a new epoch, in which the whole log is delivered. Settlements of the old epoch are too
//! late.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Offset;

use crate::log_change::{LogChange, LogObservation};
use crate::log_id::LogId;
use crate::state::ConsumerState;
use crate::state::partition::{AssignedPartition, TopicPartition};
use crate::state::start::PartitionStart;

/// How long a broker may not know that a topic was deleted. Later reports are trusted.
const DELETION_UNNOTICED: Duration = Duration::from_secs(60);

/// How a log has changed, where its partition starts again, and how far the old log was delivered.
pub(crate) struct LogReplacement {
    pub(crate) change: LogChange,
    pub(crate) start: PartitionStart,
    pub(crate) delivered_to: Option<u64>,
}

/// A partition as it was before the cluster was asked about its log.
pub(crate) struct CheckedPartition {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) topic_id: Option<String>,
    pub(crate) next: Option<u64>,
    pub(crate) doubtful: bool,
    pub(crate) suspect: bool,
}

impl ConsumerState {
    /// Returns true if a topic with this id was deleted recently, so that a broker that reports it may be behind.
    pub(crate) fn is_deleted(&self, topic_id: &str, now: Instant) -> bool {
        let since = self.deleted_topics.get(topic_id);
        since.is_some_and(|since| now.saturating_duration_since(*since) < DELETION_UNNOTICED)
    }

    /// Returns true if a log has to be checked soon.
    pub(crate) fn has_doubts(&self) -> bool {
        self.partitions.values().any(|own| (own.doubtful || own.suspect) && !own.leaving)
    }

    /// Returns the partitions whose logs may be checked, by epoch. Those that only wait for a seek are resolved already.
    pub(crate) fn checked_partitions(&self) -> HashMap<u64, CheckedPartition> {
        let is_resolved = |epoch: &u64| self.seeks.iter().any(|(own, _)| own == epoch);
        let snapshot = |own: &AssignedPartition| CheckedPartition {
            topic: Arc::clone(&own.topic),
            partition: own.number,
            topic_id: own.log.topic_id.clone(),
            next: own.next(),
            doubtful: own.doubtful,
            suspect: own.suspect,
        };
        let checked = self.partitions.iter().filter(|(epoch, own)| !own.leaving && !is_resolved(epoch));
        checked.map(|(epoch, own)| (*epoch, snapshot(own))).collect()
    }

    /// Records whether the log of a partition was reported to end before delivered records. If so, it is checked again soon: a
    /// single report may be wrong.
    pub(crate) fn set_suspect(&mut self, epoch: u64, suspect: bool) {
        let Some(own) = self.partitions.get_mut(&epoch).filter(|own| own.suspect != suspect) else { return };
        own.suspect = suspect;
        if suspect {
            self.request_log_check();
        }
    }

    /// Passes an observed log to the poll thread. The partition is doubtful until it is applied.
    pub(crate) fn observe(&mut self, observation: LogObservation) {
        let Some(own) = self.partitions.get_mut(&observation.epoch) else { return };
        own.doubtful = true;
        if self.observations.iter().all(|other| other.epoch != observation.epoch) {
            self.observations.push(observation);
        }
    }

    pub(crate) fn take_observations(&mut self) -> Vec<LogObservation> {
        std::mem::take(&mut self.observations)
    }

    /// Returns how the log of an observed partition has changed; `None` if the partition is leaving or gone.
    pub(crate) fn replacement(&self, observation: &LogObservation) -> Option<LogReplacement> {
        let own = self.partitions.get(&observation.epoch).filter(|own| !own.leaving)?;
        let is_other = |id: &String| own.log.topic_id.as_ref().is_some_and(|before| before != id);
        let (change, log) = match observation.topic_id.as_ref().filter(|id| is_other(id)) {
            Some(id) => (LogChange::Recreated, LogId { topic_id: Some(id.clone()), truncations: 0 }),
            None => {
                let log = LogId { truncations: own.log.truncations + 1, ..own.log.clone() };
                (LogChange::Truncated, log)
            }
        };
        let (topic, partition) = own.id();
        let start = PartitionStart { log, ..PartitionStart::new(topic, partition) };
        Some(LogReplacement { change, start, delivered_to: own.watermark.next() })
    }

    /// Restarts the partition of `epoch` in a new log, under a new epoch. It stays doubtful until the client has sought its start.
    pub(crate) fn restart(&mut self, epoch: u64, start: &PartitionStart, now: Instant) {
        self.generation += 1;
        self.discard_ready(epoch);
        self.forget_copies(epoch);
        let Some(before) = self.partitions.remove(&epoch) else { return };
        if before.log.topic_id != start.log.topic_id {
            self.deleted_topics.extend(before.log.topic_id.map(|id| (id, now)));
        }
        self.signals.leaving.push(epoch);
        let mut assigned = AssignedPartition { doubtful: true, ..self.assigned_at(start, now) };
        if let Some(from) = start.from {
            // Commits the start at once: the group's offset still refers to the old log.
            assigned.watermark.skip(from, from);
        }
        let new = self.add(assigned);
        if start.from.is_some() {
            self.seeks.push((new, start.offset()));
        }
    }

    /// Takes the seeks to be made, with their partitions.
    pub(crate) fn take_seeks(&mut self) -> Vec<(u64, TopicPartition, Offset)> {
        let seeks = std::mem::take(&mut self.seeks);
        let named = |(epoch, offset)| Some((epoch, self.partitions.get(&epoch)?.id(), offset));
        seeks.into_iter().filter_map(named).collect()
    }

    /// Records that the client has sought the start of a partition, which resolves its doubt.
    pub(crate) fn seek_done(&mut self, epoch: u64) {
        if let Some(own) = self.partitions.get_mut(&epoch) {
            own.doubtful = false;
        }
    }

    /// Schedules a failed seek again.
    pub(crate) fn seek_failed(&mut self, epoch: u64, offset: Offset) {
        self.seeks.push((epoch, offset));
    }
}
