//! The offsets that a transaction commits, and the error for a log that was replaced.

use std::sync::Arc;

use onceward::{Error, ErrorKind};
use onceward_kafka::internal::{classify, set_metadata};
use rdkafka::{Offset, TopicPartitionList};

use crate::transform::assignment::PartitionAssignment;
use crate::transform::batch::BatchRecord;

/// Returns the error for a log that was replaced; `None` for all partitions of the topic.
pub(super) fn log_replaced(topic: &str, partition: Option<i32>) -> Error {
    let partition =
        partition.map_or_else(|| "each partition".to_owned(), |number| format!("partition {number}"));
    let what = format!(
        "the topic was deleted and created again, or its log was truncated ({partition}). No offset of the old log is committed; \
         start again: the new log is read from its start"
    );
    Error::new(ErrorKind::Unavailable, format!("consume topic {topic}"), what)
}

/// Returns the offset after the last record of each partition, with the metadata of its log.
pub(super) fn offsets_after(records: &[BatchRecord]) -> Result<TopicPartitionList, Error> {
    let mut ends: Vec<(&Arc<PartitionAssignment>, i64)> = Vec::new();
    // Of most records, the partition is that of the one before.
    let mut last = 0;
    for own in records {
        let is_of = |(from, _): &(&Arc<PartitionAssignment>, i64)| Arc::ptr_eq(from, &own.from);
        if !ends.get(last).is_some_and(is_of) {
            last = ends.iter().position(is_of).unwrap_or(ends.len());
            if last == ends.len() {
                ends.push((&own.from, 0));
            }
        }
        ends[last].1 = ends[last].1.max(own.offset + 1);
    }
    let mut list = TopicPartitionList::new();
    for (from, end) in ends {
        list.add_partition_offset(&from.topic, from.partition, Offset::Offset(end))
            .map_err(|error| classify("run a transform", error))?;
        set_metadata(&mut list, &from.topic, from.partition, &from.log.to_string());
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use onceward::Message;
    use onceward_kafka::internal::LogId;

    use super::*;

    #[test]
    fn each_partition_has_the_offset_after_its_last_record_with_the_id_of_its_log() {
        let partition = |topic: &str, number, id: &str| {
            let log = LogId { topic_id: Some(id.to_owned()), truncations: 0 };
            Arc::new(PartitionAssignment::new(topic.into(), number, log, id.into()))
        };
        let partitions = [partition("a", 0, "00"), partition("a", 1, "00"), partition("b", 0, "01")];
        let records = [(0, 5), (0, 6), (1, 40), (0, 9), (2, 0), (1, 41), (2, 1)];
        let records = records.map(|(of, offset)| BatchRecord {
            from: Arc::clone(&partitions[of]),
            offset,
            message: Message::builder("").build(),
        });
        let list = offsets_after(&records).unwrap();
        let found: Vec<_> = list
            .elements()
            .iter()
            .map(|own| (own.topic().to_owned(), own.partition(), own.offset(), own.metadata().to_owned()))
            .collect();
        let expected =
            [("a", 0, 10, "onceward 00 0"), ("a", 1, 42, "onceward 00 0"), ("b", 0, 2, "onceward 01 0")];
        let expected = expected.map(|(topic, partition, offset, log)| {
            (topic.to_owned(), partition, Offset::Offset(offset), log.to_owned())
        });
        assert_eq!(found, expected);
    }
}
