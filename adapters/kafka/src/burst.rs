//! Records on their way from the client to the consumer, read without the lock and handed over together: [`Burst`].

use std::sync::Arc;
use std::time::Duration;

use onceward::Message;
use rdkafka::message::{BorrowedMessage, Message as _};

use crate::message;
use crate::retry::longest_in;
use crate::shared::Shared;

/// The most records, and about the most bytes, of a burst: as far as the buffer's limits may be passed.
const RECORDS: usize = 64;
const BYTES: usize = 256 << 10;

/// What the poll thread has read and not handed over.
#[derive(Default)]
pub(crate) struct Burst {
    pub(crate) read: Vec<Read>,
    pub(crate) bytes: usize,
    /// Most records come from the partition of the one before.
    last: Option<Partition>,
    /// The assignment that it was looked up in.
    changes: u64,
}

/// A record that was read.
pub(crate) struct Read {
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    pub(crate) message: Message,
    /// How long it is to wait: a copy in a retry topic.
    pub(crate) wait: Duration,
}

struct Partition {
    topic: Arc<str>,
    number: i32,
    incarnation: Arc<str>,
    /// The longest wait of a copy, if it is one of a retry topic.
    longest: Option<Duration>,
    epoch: u64,
}

impl Burst {
    /// Reads a record. False if no more of its partition is wanted for a while.
    pub(crate) fn read(&mut self, shared: &Shared, record: &BorrowedMessage<'_>) -> bool {
        let Some(partition) = self.partition(shared, record.topic(), record.partition()) else { return true };
        let Ok(offset) = u64::try_from(record.offset()) else { return true };
        let (topic, incarnation) = (&partition.topic, &partition.incarnation);
        let own = &shared.topics.own_headers;
        let (message, wait) = message::from(record, topic, incarnation, partition.longest, own);
        let epoch = partition.epoch;
        self.bytes += message.size();
        self.read.push(Read { epoch, offset, message, wait });
        wait.is_zero()
    }

    /// It is time to hand over what was read.
    pub(crate) fn is_full(&self, shared: &Shared) -> bool {
        let records = RECORDS.min(shared.topics.buffer_messages.div_ceil(8));
        self.read.len() >= records || self.bytes >= BYTES.min(shared.topics.buffer_bytes.div_ceil(8))
    }

    fn partition(&mut self, shared: &Shared, topic: &str, number: i32) -> Option<&Partition> {
        // Only the thread that reads changes the assignment: while the client is polled.
        let changes = shared.changes();
        let is_same = |last: &Partition| last.number == number && *last.topic == *topic;
        if self.changes != changes || !self.last.as_ref().is_some_and(is_same) {
            self.changes = changes;
            let state = shared.lock();
            let epoch = state.epoch(topic, number);
            self.last = epoch.and_then(|epoch| {
                let own = state.assigned.get(&epoch)?;
                let (topic, incarnation) = (Arc::clone(&own.topic), Arc::clone(&own.incarnation));
                let longest = own.is_retry.then(|| longest_in(&shared.topics.retry_topics, &topic));
                Some(Partition { topic, number, incarnation, longest, epoch })
            });
        }
        self.last.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assignment::Begin;
    use crate::config::TopicConfig;
    use crate::leaving::Leaving;

    struct Member(Arc<Shared>);

    impl Member {
        fn new() -> Self {
            Self(Shared::new(TopicConfig::new(["orders"]), "cluster".into()))
        }

        fn assign(&self) {
            let topic = "orders".to_owned();
            self.0.assign(&[Begin { topic, partition: 0, ..Begin::default() }]);
        }

        fn read(&self, burst: &mut Burst, offset: u64) {
            let epoch = burst.partition(&self.0, "orders", 0).expect("it is assigned").epoch;
            let message = Message::builder("").build();
            burst.read.push(Read { epoch, offset, message, wait: Duration::ZERO });
        }

        /// How many deliveries there are.
        fn delivered(&self) -> usize {
            self.0.take().map_or(0, |deliveries| deliveries.len())
        }
    }

    #[test]
    fn what_was_read_before_a_partition_came_again_is_left_to_the_new_assignment() {
        let (member, mut burst) = (Member::new(), Burst::default());
        assert!(burst.partition(&member.0, "orders", 0).is_none());
        member.assign();
        member.read(&mut burst, 4);
        member.read(&mut burst, 5);
        member.0.forget(&[("orders".to_owned(), 0)]);
        assert!(burst.partition(&member.0, "orders", 0).is_none(), "it is gone");
        member.assign();
        // The new assignment starts where the group has committed, and reads them again.
        member.read(&mut burst, 4);
        member.0.polled(&mut burst);
        assert_eq!((member.delivered(), burst.read.len()), (1, 0));
    }

    #[test]
    fn of_a_partition_that_is_leaving_nothing_more_is_delivered() {
        let (member, mut burst) = (Member::new(), Burst::default());
        member.assign();
        member.read(&mut burst, 4);
        let leaving = [("orders".to_owned(), 0)];
        member.0.leave(&leaving);
        member.0.polled(&mut burst);
        assert_eq!((member.delivered(), member.0.last_commits(&leaving)), (0, vec![]));
        assert!(member.0.are_drained(&leaving));
    }

    /// The client resets by itself when the requested offset is not in the log.
    #[test]
    fn a_record_before_the_beginning_that_was_wanted_is_of_another_log() {
        let (member, mut burst) = (Member::new(), Burst::default());
        let begin = Begin { topic: "orders".into(), from: Some(7), ..Begin::default() };
        member.0.assign(&[begin]);
        member.read(&mut burst, 4);
        member.0.polled(&mut burst);
        assert_eq!(member.delivered(), 0);
        assert!(member.0.lock().assigned.values().all(|own| own.doubtful));
    }

    /// `--until-empty` would end while the member joins again.
    #[test]
    fn a_member_that_has_to_join_again_is_not_at_the_end() {
        let member = Member::new();
        let (leaving, drain) = (vec![("orders".to_owned(), 0)], Duration::from_secs(5));
        assert!(!member.0.is_settled(), "it has not joined");
        member.assign();
        assert!(member.0.is_settled());
        member.0.leave(&leaving);
        member.0.lock().leaving = Some(Leaving::new(leaving.clone(), drain));
        assert!(!member.0.is_settled(), "partitions are being revoked");
        member.0.lock().leaving = None;
        member.0.forget(&leaving);
        assert!(!member.0.is_settled(), "they are gone, and it has to join again");
        member.0.assign(&[]);
        assert!(member.0.is_settled(), "there is nothing for it");
        member.0.put_off(leaving, None);
        assert!(!member.0.is_settled(), "it is not known where one begins");
        member.0.forget_all();
        member.0.assign(&[]);
        assert!(member.0.is_settled());
        member.0.forget_all();
        assert!(!member.0.is_settled(), "the client is made anew");
    }
}
