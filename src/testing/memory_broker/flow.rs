//! Partitions of the memory broker: which may be delivered, pausing them, and taking them away from a consumer.

use tokio::sync::mpsc;

use super::{MemoryBroker, State};
use crate::consumer::{FlowControl, Notice};
use crate::message::Message;

/// The epoch of a consumer's deliveries of a partition.
fn epoch(consumer: u64, partition: u32, partitions: u32) -> u64 {
    if partitions > 1 { (consumer << 32) | u64::from(partition) } else { consumer }
}

fn partition(message: &Message) -> u32 {
    message.position().map_or(0, |position| position.partition)
}

impl State {
    /// The next message that may be delivered to this consumer, and the epoch of its delivery.
    pub(super) fn next_for(&mut self, consumer: u64, partitions: u32) -> Option<(u64, Message)> {
        if partitions <= 1 {
            return self.waiting.pop_front().map(|message| (consumer, message));
        }
        let epoch = |message: &Message| epoch(consumer, partition(message), partitions);
        let may_come = |message: &Message| {
            let epoch = epoch(message);
            !self.paused.contains(&epoch) && !self.left.contains(&epoch)
        };
        let index = self.waiting.iter().position(may_come)?;
        self.waiting.remove(index).map(|message| (epoch(&message), message))
    }
}

impl MemoryBroker {
    /// Notifies a consumer that a partition is leaving it, and delivers nothing more of the partition to it.
    pub fn leave(&self, consumer: u64, partition: u32) {
        let mut state = self.0.lock();
        let epoch = epoch(consumer, partition, self.0.habits.partitions);
        state.left.insert(epoch);
        if let Some(notices) = state.notices.get(&consumer) {
            // A consumer that is gone needs no notice.
            let _ = notices.send(Notice::Leaving { epoch });
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// True if a consumer has paused a partition.
    pub fn is_paused(&self, consumer: u64, partition: u32) -> bool {
        self.0.lock().paused.contains(&epoch(consumer, partition, self.0.habits.partitions))
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
