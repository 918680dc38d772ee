//! Stops and resumes single partitions for the pipeline: [`Flow`].

use std::sync::Arc;

use onceward::FlowControl;

use crate::shared::Shared;

/// The flow control of a [`KafkaConsumer`](crate::KafkaConsumer). The client pauses what the pipeline pauses, within one poll,
/// so that nothing more is fetched of it.
pub(crate) struct Flow(pub(crate) Arc<Shared>);

impl FlowControl for Flow {
    fn pause(&self, epoch: u64) {
        if self.0.lock().set_paused(epoch, true) {
            // What it had in the buffer counts no more.
            self.0.change();
        }
    }

    fn resume(&self, epoch: u64) {
        if self.0.lock().set_paused(epoch, false) {
            self.0.change();
            self.0.arrived.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use onceward::{Message, Settlement, Tag};

    use super::*;
    use crate::assignment::Begin;
    use crate::burst::{Burst, Read};
    use crate::config::TopicConfig;

    fn member(partitions: i32) -> Arc<Shared> {
        let mut topics = TopicConfig::new(["orders"]);
        topics.buffer_messages = 100;
        let shared = Shared::new(topics, "cluster".into());
        let begin = |partition| Begin { topic: "orders".into(), partition, ..Begin::default() };
        shared.assign(&(0..partitions).map(begin).collect::<Vec<_>>());
        shared
    }

    fn read(shared: &Shared, epoch: u64, offsets: std::ops::Range<u64>) {
        let mut burst = Burst::default();
        for offset in offsets {
            let message = Message::builder("").build();
            burst.read.push(Read { epoch, offset, message, wait: std::time::Duration::ZERO });
        }
        shared.polled(&mut burst);
    }

    /// The epochs of what is handed out.
    fn taken(shared: &Shared) -> Vec<Tag> {
        let deliveries = shared.take().unwrap_or_default();
        deliveries.iter().map(|delivery| delivery.tag).collect()
    }

    #[test]
    fn a_paused_partition_hands_out_nothing_and_leaves_the_room_to_the_others() {
        let (shared, none) = (member(2), std::time::Duration::ZERO);
        read(&shared, 1, 0..100);
        assert!(!shared.wait_for_room(none));
        let flow = Flow(Arc::clone(&shared));
        flow.pause(1);
        flow.pause(1);
        flow.pause(99);
        assert!(shared.wait_for_room(none));
        read(&shared, 2, 0..10);
        assert!(taken(&shared).iter().all(|tag| tag.epoch == 2));
        flow.resume(1);
        flow.resume(1);
        assert!(!shared.wait_for_room(none));
        let tags = taken(&shared);
        assert!(tags.len() == 100 && tags.iter().all(|tag| tag.epoch == 1));
        assert!(shared.wait_for_room(none));
        // What comes back while it is paused waits as well.
        flow.pause(1);
        shared.settle(&[(tags[5], Settlement::Abandon)]);
        assert_eq!(taken(&shared), []);
        flow.resume(1);
        assert_eq!(taken(&shared).len(), 1);
    }

    #[test]
    fn partitions_take_turns_whoever_was_read_first() {
        let shared = member(2);
        read(&shared, 1, 0..90);
        read(&shared, 2, 0..5);
        let second = taken(&shared).iter().position(|tag| tag.epoch == 2);
        assert!(second.is_some_and(|place| place <= 32), "{second:?}");
    }
}
