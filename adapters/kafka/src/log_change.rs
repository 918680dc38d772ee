//! Replacement of a partition's log: its topic was recreated, or the log was truncated.

use onceward::{Error, ErrorKind};

/// How a log was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogChange {
    Recreated,
    Truncated,
}

impl LogChange {
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Recreated => "topic was deleted and created again",
            Self::Truncated => "log was truncated",
        }
    }
}

/// The observed log of a doubtful partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogObservation {
    pub(crate) epoch: u64,
    /// The topic's id; `None` from brokers older than 2.8.
    pub(crate) topic_id: Option<String>,
    pub(crate) log_start: u64,
    pub(crate) log_end: u64,
}

/// Returns the error for a truncated log whose positions are stored in a database: a person has to decide.
pub(crate) fn truncation_error(topic: &str, partition: i32) -> Error {
    let what = "the log was truncated: processed records are gone and other records have or will get their offsets, while the \
                positions in the database refer to the old log. Find out what the topic holds, remove the positions of this \
                group, and start again: the log is then read from its start";
    Error::new(ErrorKind::Corrupt, format!("consume topic {topic}, partition {partition}"), what)
}
