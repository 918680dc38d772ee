//! Identity of a partition's log, stored as metadata of each committed offset: [`LogId`].

use std::fmt;

/// The first word of the metadata. Other programs that commit for the group may write anything.
const MARK: &str = "onceward";

/// The log that an offset refers to.
///
/// Kafka stores a committed offset under the topic's name, which survives the topic. An offset with another `LogId` than the
/// present log's refers to a topic that was deleted, or to a log before it was truncated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogId {
    /// The topic's id; `None` from brokers older than 2.8.
    pub topic_id: Option<String>,
    /// The number of truncations of the partition's log that were observed since the topic was created.
    pub truncations: u32,
}

impl LogId {
    /// Parses an offset's metadata; `None` if another program wrote it.
    pub(crate) fn parse(metadata: &str) -> Option<Self> {
        let mut parts = metadata.split(' ');
        if parts.next() != Some(MARK) {
            return None;
        }
        let topic_id = parts.next().filter(|id| !id.is_empty())?.to_owned();
        Some(Self { topic_id: Some(topic_id), truncations: parts.next()?.parse().ok()? })
    }

    /// Returns the incarnation that a [`Position`](onceward::Position) in this log carries.
    #[must_use]
    pub fn incarnation(&self, cluster: &str, topic: &str) -> String {
        let id = self.topic_id.as_deref().unwrap_or(topic);
        match self.truncations {
            0 => format!("{cluster}/{id}"),
            truncations => format!("{cluster}/{id}.{truncations}"),
        }
    }
}

/// Formats the metadata of an offset; empty where topics have no ids.
impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.topic_id {
            Some(id) => write!(f, "{MARK} {id} {}", self.truncations),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_round_trips_and_foreign_metadata_is_ignored() {
        let log = LogId { topic_id: Some("00ff".into()), truncations: 3 };
        assert_eq!(LogId::parse(&log.to_string()), Some(log.clone()));
        for other in ["", "onceward", "onceward 00ff", "onceward  1", "onceward 00ff x", "mine 00ff 1"] {
            assert_eq!(LogId::parse(other), None, "{other}");
        }
        assert_eq!(LogId::default().to_string(), "");
        assert_eq!(log.incarnation("c", "t"), "c/00ff.3");
        assert_eq!(LogId { truncations: 0, ..log }.incarnation("c", "t"), "c/00ff");
        assert_eq!(LogId::default().incarnation("c", "t"), "c/t");
    }
}
