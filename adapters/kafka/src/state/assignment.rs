//! Assignment and revocation of partitions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::retry::topic::max_wait_in;
use crate::state::ConsumerState;
use crate::state::partition::{AssignedPartition, TopicPartition};
use crate::state::pending::REPORT_AFTER;
use crate::state::revocation::Revocation;
use crate::state::start::PartitionStart;

/// The data that the poll thread needs to read the records of a partition.
#[derive(Clone, Debug)]
pub(crate) struct ReadPartition {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
    pub(crate) incarnation: Arc<str>,
    /// The longest wait of a copy, for a retry topic.
    pub(crate) max_wait: Option<Duration>,
    pub(crate) epoch: u64,
}

impl ConsumerState {
    /// Adds partitions that the group has assigned, each under a new epoch.
    pub(crate) fn assign(&mut self, starts: &[PartitionStart], now: Instant) {
        self.generation += 1;
        self.joined = true;
        self.reassigned = true;
        self.join_failure = None;
        for start in starts {
            let assigned = self.assigned_at(start, now);
            self.add(assigned);
        }
        self.signals.monitor = true;
    }

    /// Adds partitions that were pending, and schedules the client's seek to their start offsets.
    pub(crate) fn start_pending(&mut self, starts: &[PartitionStart], now: Instant) {
        self.generation += 1;
        for start in starts {
            if !self.pending.remove(&[(Arc::clone(&start.topic), start.partition)]) {
                continue;
            }
            let assigned = AssignedPartition { doubtful: true, ..self.assigned_at(start, now) };
            let epoch = self.add(assigned);
            self.seeks.push((epoch, start.offset()));
        }
        self.signals.monitor = true;
    }

    /// Keeps partitions pending until their start offset is known. Returns a description of the trouble once it has lasted.
    pub(crate) fn postpone(
        &mut self,
        partitions: Vec<TopicPartition>,
        reason: Option<String>,
        now: Instant,
    ) -> Option<String> {
        if partitions.is_empty() {
            return None;
        }
        self.pending.postpone(partitions, reason, now);
        self.pending.trouble().filter(|_| self.pending.attempts() == REPORT_AFTER)
    }

    pub(super) fn assigned_at(&self, start: &PartitionStart, now: Instant) -> AssignedPartition {
        let incarnation = start.log.incarnation(&self.cluster, &start.topic).into();
        let is_retry_topic = self.topics.retry_topics.iter().any(|own| *own.name == *start.topic);
        let topic = Arc::clone(&start.topic);
        let assigned = AssignedPartition::new(topic, start.partition, start.log.clone(), incarnation, now);
        AssignedPartition { is_retry_topic, start: start.from, ..assigned }
    }

    /// Adds a partition under a new epoch.
    pub(super) fn add(&mut self, assigned: AssignedPartition) -> u64 {
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        self.current.entry(Arc::clone(&assigned.topic)).or_default().insert(assigned.number, epoch);
        self.partitions.insert(epoch, assigned);
        epoch
    }

    /// Returns the data needed to read the records of a partition; `None` if it is not assigned.
    pub(crate) fn read_partition(&self, topic: &str, number: i32) -> Option<ReadPartition> {
        let epoch = self.epoch(topic, number)?;
        let own = self.partitions.get(&epoch)?;
        let max_wait = own.is_retry_topic.then(|| max_wait_in(&self.topics.retry_topics, topic));
        let (topic, incarnation) = (Arc::clone(&own.topic), Arc::clone(&own.incarnation));
        Some(ReadPartition { topic, number, incarnation, max_wait, epoch })
    }

    /// Starts the revocation of partitions: nothing more of them is handed out, and the pipeline is notified.
    pub(crate) fn leave(&mut self, partitions: Vec<TopicPartition>, limit: Duration, now: Instant) {
        self.flow_changed = true;
        self.pending.remove(&partitions);
        for (topic, number) in &partitions {
            let Some(epoch) = self.epoch(topic, *number) else { continue };
            self.discard_ready(epoch);
            if let Some(own) = self.partitions.get_mut(&epoch) {
                own.leaving = true;
            }
            self.signals.leaving.push(epoch);
        }
        self.revocation = Some(Revocation::new(partitions, limit, now));
    }

    /// Returns true if no record of these partitions is in flight.
    pub(crate) fn are_drained(&self, partitions: &[TopicPartition]) -> bool {
        let mut own =
            partitions.iter().filter_map(|(topic, number)| self.partitions.get(&self.epoch(topic, *number)?));
        own.all(|own| own.in_flight.is_empty())
    }

    /// Returns true if the partition is being revoked, or no longer assigned.
    pub(crate) fn is_leaving(&self, epoch: u64) -> bool {
        self.partitions.get(&epoch).is_none_or(|own| own.leaving)
    }

    /// Removes partitions: from now on their deliveries settle nothing.
    pub(crate) fn forget(&mut self, partitions: &[TopicPartition]) {
        self.generation += 1;
        self.reassigned = true;
        // Each revocation is followed by an assignment, possibly of no partitions.
        self.joined = false;
        self.pending.remove(partitions);
        for (topic, number) in partitions {
            let epoch = self.current.get_mut(topic).and_then(|numbers| numbers.remove(number));
            if let Some(epoch) = epoch {
                self.discard_ready(epoch);
                self.forget_copies(epoch);
                if self.partitions.remove(&epoch).is_some_and(|own| !own.leaving) {
                    self.signals.leaving.push(epoch);
                }
            }
        }
        (self.signals.poll, self.signals.monitor) = (true, true);
    }

    /// Removes everything that belongs to the current client.
    pub(crate) fn forget_all(&mut self) {
        self.generation += 1;
        self.partitions.clear();
        self.current.clear();
        self.turns.clear();
        (self.buffered, self.buffered_bytes, self.copying) = (0, 0, 0);
        self.delayed.clear();
        self.revocation = None;
        self.observations.clear();
        self.seeks.clear();
        self.gaps.clear();
        self.pending = Default::default();
        (self.joined, self.commit_sent) = (false, None);
    }

    /// Returns true if no more records can arrive except from the logs of assigned partitions: the member has joined, no
    /// revocation is in progress, no start offset is unknown, and nothing waits to be handed out.
    pub(crate) fn is_settled(&self) -> bool {
        let is_steady = self.joined && self.revocation.is_none() && self.pending.is_empty();
        is_steady && self.nothing_waits()
    }

    /// Returns true if no record waits to be handed out, or for the confirmation of its copy.
    pub(crate) fn nothing_waits(&self) -> bool {
        self.copying == 0
            && self.delayed.is_empty()
            && self.partitions.values().all(|own| own.ready.is_empty() && !own.doubtful)
    }
}
