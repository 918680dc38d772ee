//! The start of an assigned partition's delivery: [`PartitionStart`].

use std::sync::Arc;

use rdkafka::Offset;

use crate::log_id::LogId;

/// An assigned partition, its log, and the first offset to deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionStart {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
    /// The log that its offsets refer to.
    pub log: LogId,
    /// The first offset to deliver, if known.
    pub from: Option<u64>,
    /// The group has no offset: `auto.offset.reset` decides where the client starts.
    pub by_policy: bool,
}

impl PartitionStart {
    pub(crate) fn new(topic: Arc<str>, partition: i32) -> Self {
        Self { topic, partition, log: LogId::default(), from: None, by_policy: false }
    }

    /// Returns the offset that the client seeks to.
    pub(crate) fn offset(&self) -> Offset {
        match self.from.filter(|_| !self.by_policy) {
            Some(from) => to_client_offset(from),
            None => Offset::Invalid,
        }
    }
}

pub(crate) fn to_client_offset(offset: u64) -> Offset {
    Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX))
}
