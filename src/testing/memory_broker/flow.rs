//! Partitions of the memory broker: pause, resume, revoke and assign.

use tokio::sync::mpsc;

use super::{MemoryBroker, MemoryBrokerState};
use crate::consumer::{FlowControl, Notice};
use crate::message::Message;

/// Below the number of an epoch's partition, that of its assignment.
const ASSIGNMENT: u32 = 16;

fn partition(message: &Message) -> u32 {
    message.position().map_or(0, |position| position.partition)
}

impl MemoryBrokerState {
    /// The epoch of a consumer's deliveries of a partition, as it is assigned now.
    fn epoch(&self, consumer: u64, partition: u32, partitions: u32) -> u64 {
        if partitions <= 1 {
            return consumer;
        }
        let assignment = self.assignments.get(&(consumer, partition)).copied().unwrap_or_default();
        (consumer << 32) | (assignment << ASSIGNMENT) | u64::from(partition)
    }

    /// The next message that may be delivered to this consumer, and the epoch of its delivery.
    pub(super) fn next_for(&mut self, consumer: u64, partitions: u32) -> Option<(u64, Message)> {
        if partitions <= 1 {
            return self.waiting.pop_front().map(|message| (consumer, message));
        }
        let epoch = |message: &Message| self.epoch(consumer, partition(message), partitions);
        let may_come = |message: &Message| {
            let epoch = epoch(message);
            !self.paused.contains(&epoch) && !self.left.contains(&epoch)
        };
        let index = self.waiting.iter().position(may_come)?;
        let message = self.waiting.remove(index)?;
        Some((self.epoch(consumer, partition(&message), partitions), message))
    }
}

impl MemoryBroker {
    /// Notifies a consumer that a partition is leaving it, and delivers nothing more of the partition to it, unless it is
    /// [assigned](Self::assign) again.
    pub fn leave(&self, consumer: u64, partition: u32) {
        let mut state = self.0.lock();
        let epoch = state.epoch(consumer, partition, self.0.habits.partitions);
        state.left.insert(epoch);
        if let Some(notices) = state.notices.get(&consumer) {
            // A consumer that was closed needs no notice.
            let _ = notices.send(Notice::Leaving { epoch });
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Assigns a partition that was taken from a consumer to it once more, under a new epoch. The deliveries of the old
    /// epoch that it has not settled are redelivered, and their tags settle nothing, as after a drain that took too
    /// long. Nothing happens if the partition was not taken.
    pub fn assign(&self, consumer: u64, own: u32) {
        let mut guard = self.0.lock();
        let state = &mut *guard;
        let before = state.epoch(consumer, own, self.0.habits.partitions);
        if !state.left.remove(&before) {
            return;
        }
        state.paused.remove(&before);
        *state.assignments.entry((consumer, own)).or_default() += 1;
        state.give_back(|unsettled| unsettled.consumer == consumer && partition(&unsettled.message) == own);
        drop(guard);
        self.0.changed.notify_waiters();
    }

    /// True if a consumer has paused a partition.
    pub fn is_paused(&self, consumer: u64, partition: u32) -> bool {
        let state = self.0.lock();
        state.paused.contains(&state.epoch(consumer, partition, self.0.habits.partitions))
    }

    pub(super) fn notices_of(&self, consumer: u64) -> Option<mpsc::UnboundedReceiver<Notice>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.lock().notices.insert(consumer, sender);
        Some(receiver)
    }
}

impl FlowControl for MemoryBroker {
    fn pause(&self, epoch: u64) {
        self.0.lock().paused.insert(epoch);
    }

    fn resume(&self, epoch: u64) {
        self.0.lock().paused.remove(&epoch);
        self.0.changed.notify_waiters();
    }
}
