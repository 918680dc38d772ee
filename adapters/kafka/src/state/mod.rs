//! The consumer's state machine: assignment, delivery, settlement and commits of partitions, without locks, IO or a clock.
//!
//! Callers pass the time. A transition that concerns another thread sets a flag in [`StateSignals`]; the
//! [`Handle`](crate::handle::Handle), which owns the lock, wakes that thread.

pub(crate) mod assignment;
pub(crate) mod commits;
pub(crate) mod delivery;
pub(crate) mod log_check;
pub(crate) mod partition;
pub(crate) mod pending;
pub(crate) mod progress;
pub(crate) mod revocation;
pub(crate) mod start;
#[cfg(test)]
mod tests;
pub(crate) mod watermark;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use rdkafka::Offset;

use crate::config::TopicConfig;
use crate::log_change::LogObservation;
use crate::retention::OffsetGap;
use crate::state::partition::{AssignedPartition, ReadyRecord};
use crate::state::pending::PendingPartitions;
use crate::state::revocation::Revocation;

/// The state of one member of a consumer group.
pub(crate) struct ConsumerState {
    pub(crate) topics: Arc<TopicConfig>,
    pub(crate) cluster: Arc<str>,
    /// By epoch.
    pub(crate) partitions: foldhash::HashMap<u64, AssignedPartition>,
    /// The epoch of each partition's current assignment.
    current: HashMap<Arc<str>, HashMap<i32, u64>>,
    /// Epochs with records to hand out, in the order of their turns.
    turns: VecDeque<u64>,
    /// The number and bytes of records to hand out, without those of paused partitions.
    buffered: usize,
    buffered_bytes: usize,
    /// Records that wait in this process, with their due times.
    delayed: Vec<(Instant, ReadyRecord)>,
    /// The number of copies being published to retry topics.
    copying: usize,
    last_epoch: u64,
    last_tag_number: u64,
    /// Changes with every change of the assignment.
    pub(crate) generation: u64,
    /// The group has assigned partitions to this member, and revoked none since.
    joined: bool,
    /// The assignment has changed since the poll thread last looked.
    pub(crate) reassigned: bool,
    /// A partition was paused, resumed or revoked since the poll thread last looked.
    pub(crate) flow_changed: bool,
    pub(crate) revocation: Option<Revocation>,
    /// Why the member cannot join its group, other than connectivity.
    pub(crate) join_failure: Option<String>,
    /// The monitor has to check the logs now.
    pub(crate) check_logs: bool,
    observations: Vec<LogObservation>,
    /// Seeks of partitions that the client already reads, by epoch: after a new log, or a start offset found late.
    seeks: Vec<(u64, Offset)>,
    pub(crate) pending: PendingPartitions,
    /// When the commit in flight was sent.
    commit_sent: Option<Instant>,
    gaps: Vec<OffsetGap>,
    /// Ids of deleted topics, and when their deletion was noticed. A broker may report a deleted topic for a while.
    pub(crate) deleted_topics: HashMap<String, Instant>,
    signals: StateSignals,
}

/// Effects of a transition on other threads.
#[derive(Debug, Default)]
pub(crate) struct StateSignals {
    /// There may be room in the buffer, or other work for the poll thread.
    pub(crate) poll: bool,
    /// The monitor has something to check.
    pub(crate) monitor: bool,
    /// There is something to receive, or a new due time.
    pub(crate) receive: bool,
    /// Epochs whose deliveries will settle nothing soon.
    pub(crate) leaving: Vec<u64>,
}

impl ConsumerState {
    pub(crate) fn new(topics: Arc<TopicConfig>, cluster: Arc<str>) -> Self {
        Self {
            topics,
            cluster,
            partitions: foldhash::HashMap::default(),
            current: HashMap::new(),
            turns: VecDeque::new(),
            buffered: 0,
            buffered_bytes: 0,
            delayed: Vec::new(),
            copying: 0,
            last_epoch: 0,
            last_tag_number: 0,
            generation: 0,
            joined: false,
            reassigned: false,
            flow_changed: false,
            revocation: None,
            join_failure: None,
            check_logs: false,
            observations: Vec::new(),
            seeks: Vec::new(),
            pending: PendingPartitions::default(),
            commit_sent: None,
            gaps: Vec::new(),
            deleted_topics: HashMap::new(),
            signals: StateSignals::default(),
        }
    }

    /// Takes the effects of the transitions since the last call.
    pub(crate) fn take_signals(&mut self) -> StateSignals {
        std::mem::take(&mut self.signals)
    }

    /// Returns the epoch of a partition's current assignment.
    pub(crate) fn epoch(&self, topic: &str, partition: i32) -> Option<u64> {
        self.current.get(topic)?.get(&partition).copied()
    }

    fn current_mut(&mut self, topic: &str, partition: i32) -> Option<&mut AssignedPartition> {
        let epoch = self.epoch(topic, partition)?;
        self.partitions.get_mut(&epoch)
    }

    /// Asks the monitor to check the logs now.
    pub(crate) fn request_log_check(&mut self) {
        self.check_logs = true;
        self.signals.monitor = true;
    }
}
