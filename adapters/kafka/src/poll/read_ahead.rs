//! Reads records from the client without the lock, and passes them on in groups: [`ReadAhead`].

use rdkafka::message::{BorrowedMessage, Message as _};

use crate::config::TopicConfig;
use crate::message::to_message;
use crate::state::assignment::ReadPartition;
use crate::state::delivery::PolledRecord;

/// The most records and, approximately, bytes of a group: by as much the limits of the buffer may be exceeded.
const MAX_RECORDS: usize = 64;
const MAX_BYTES: usize = 256 << 10;

/// Records that were read and not passed on.
#[derive(Default)]
pub(super) struct ReadAhead {
    records: Vec<PolledRecord>,
    bytes: usize,
    /// The partition of the previous record: most records come from the same one.
    last: Option<ReadPartition>,
    /// The generation of the assignment in which it was looked up.
    generation: u64,
}

impl ReadAhead {
    /// Reads a record. `lookup` finds its partition, and is called only if that may have changed: for another partition, or after
    /// a new `generation`. Returns false if no more records of the partition should be read for a while.
    pub(super) fn read(
        &mut self,
        record: &BorrowedMessage<'_>,
        topics: &TopicConfig,
        generation: u64,
        lookup: impl FnOnce(&str, i32) -> Option<ReadPartition>,
    ) -> bool {
        let partition = self.partition(record.topic(), record.partition(), generation, lookup);
        let Some(ReadPartition { topic, incarnation, max_wait, epoch, .. }) = partition else { return true };
        let (epoch, Ok(offset)) = (*epoch, u64::try_from(record.offset())) else { return true };
        let (message, wait) = to_message(record, topic, incarnation, *max_wait, &topics.own_headers);
        self.bytes += message.size();
        self.records.push(PolledRecord { epoch, offset, message, wait });
        wait.is_zero()
    }

    fn partition(
        &mut self,
        topic: &str,
        number: i32,
        generation: u64,
        lookup: impl FnOnce(&str, i32) -> Option<ReadPartition>,
    ) -> Option<&ReadPartition> {
        let is_same = |last: &ReadPartition| last.number == number && *last.topic == *topic;
        if self.generation != generation || !self.last.as_ref().is_some_and(is_same) {
            self.generation = generation;
            self.last = lookup(topic, number);
        }
        self.last.as_ref()
    }

    /// Returns true if the group should be passed on.
    pub(super) fn is_full(&self, topics: &TopicConfig) -> bool {
        let records = MAX_RECORDS.min(topics.buffer_messages.div_ceil(8));
        self.records.len() >= records || self.bytes >= MAX_BYTES.min(topics.buffer_bytes.div_ceil(8))
    }

    /// Returns true if nothing was read since the last [`drain`](Self::drain).
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Takes the records of the group.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = PolledRecord> {
        self.bytes = 0;
        self.records.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_looked_up_again_only_for_another_one_or_after_a_change_of_the_assignment() {
        let mut read_ahead = ReadAhead::default();
        let mut lookups = 0;
        let mut epoch_of = |number, generation, epoch| {
            let lookup = |topic: &str, number| {
                lookups += 1;
                let (topic, incarnation) = (topic.into(), "cluster/id".into());
                Some(ReadPartition { topic, number, incarnation, max_wait: None, epoch })
            };
            read_ahead.partition("orders", number, generation, lookup).unwrap().epoch
        };
        assert_eq!([epoch_of(0, 1, 7), epoch_of(0, 1, 9)], [7, 7], "the previous partition is cached");
        assert_eq!([epoch_of(1, 1, 8), epoch_of(0, 1, 7)], [8, 7]);
        assert_eq!(epoch_of(0, 2, 9), 9, "it was assigned again");
        assert_eq!(lookups, 4);
    }
}
