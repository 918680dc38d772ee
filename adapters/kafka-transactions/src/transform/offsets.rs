//! The offsets that a transaction commits, and the error for a log that was replaced.

use std::collections::BTreeMap;

use onceward::{Error, ErrorKind};
use onceward_kafka::internal::{classify, set_metadata};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use crate::transform::assignment::TransformAssignment;
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
pub(super) fn offsets_after(
    source: &BaseConsumer<TransformAssignment>,
    batch: &[BatchRecord],
) -> Result<TopicPartitionList, Error> {
    let mut ends = BTreeMap::new();
    for own in batch {
        let end = ends.entry((&*own.topic, own.partition)).or_insert(own.offset + 1);
        *end = (*end).max(own.offset + 1);
    }
    let mut list = TopicPartitionList::new();
    for ((topic, partition), end) in ends {
        list.add_partition_offset(topic, partition, Offset::Offset(end))
            .map_err(|error| classify("run a transform", error))?;
        let log = source.context().log_id(topic, partition);
        set_metadata(&mut list, topic, partition, &log.to_string());
    }
    Ok(list)
}
