//! Which offsets a transaction carries, and that they are of another log than before.

use std::collections::BTreeMap;

use onceward::{Error, ErrorKind};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::batch::Taken;
use super::members::Members;
use onceward_kafka::internal as begin;
use onceward_kafka::internal::error;

/// Its log is another one than it was.
pub(super) fn another_log(topic: &str, partition: i32) -> Error {
    let what = format!(
        "the topic was deleted and created again, or the log of a partition ({partition}; -1: all) was truncated. Nothing of the old \
         log is committed; start again: the new log is read from its start"
    );
    Error::new(ErrorKind::Unavailable, format!("go on with topic {topic}"), what)
}

/// Behind the last record of each partition, with the stamps of their logs.
pub(super) fn offsets(source: &BaseConsumer<Members>, taken: &[Taken]) -> Result<TopicPartitionList, Error> {
    let mut ends = BTreeMap::new();
    for own in taken {
        let end = ends.entry((&*own.topic, own.partition)).or_insert(own.offset + 1);
        *end = (*end).max(own.offset + 1);
    }
    let mut list = TopicPartitionList::new();
    for ((topic, partition), end) in ends {
        list.add_partition_offset(topic, partition, Offset::Offset(end))
            .map_err(|error| error::kafka("run a transform", error))?;
        begin::stamp(&mut list, topic, partition, &source.context().stamp(topic, partition).to_string());
    }
    Ok(list)
}
