//! What is written beside a committed offset: which topic it counts in: [`Stamp`].

use std::fmt;

/// The first word of a stamp; others that commit for the group may write anything.
const MARK: &str = "onceward";

/// The log that an offset counts in. Kafka names a committed offset by the topic's name, which outlives the topic: who finds
/// another stamp than that of the present log knows that the offset is of a topic that was deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The topic's id; `None` from brokers older than 2.8.
    pub id: Option<String>,
    /// How often the log of the partition was seen truncated since the topic was created.
    pub cuts: u32,
}

impl Stamp {
    /// The stamp in an offset's metadata, if there is one.
    pub fn read(metadata: &str) -> Option<Self> {
        let mut parts = metadata.split(' ');
        if parts.next() != Some(MARK) {
            return None;
        }
        let id = parts.next().filter(|id| !id.is_empty())?.to_owned();
        Some(Self { id: Some(id), cuts: parts.next()?.parse().ok()? })
    }

    /// What the offsets of `topic` count in, as positions name it.
    pub fn incarnation(&self, cluster: &str, topic: &str) -> String {
        let id = self.id.as_deref().unwrap_or(topic);
        match self.cuts {
            0 => format!("{cluster}/{id}"),
            cuts => format!("{cluster}/{id}.{cuts}"),
        }
    }
}

/// As it stands in an offset's metadata; nothing where topics have no ids.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => write!(f, "{MARK} {id} {}", self.cuts),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back_and_what_others_write_is_none() {
        let stamp = Stamp { id: Some("00ff".into()), cuts: 3 };
        assert_eq!(Stamp::read(&stamp.to_string()), Some(stamp.clone()));
        for other in ["", "onceward", "onceward 00ff", "onceward  1", "onceward 00ff x", "mine 00ff 1"] {
            assert_eq!(Stamp::read(other), None, "{other}");
        }
        assert_eq!(Stamp::default().to_string(), "");
        assert_eq!(stamp.incarnation("c", "t"), "c/00ff.3");
        assert_eq!(Stamp { cuts: 0, ..stamp }.incarnation("c", "t"), "c/00ff");
        assert_eq!(Stamp::default().incarnation("c", "t"), "c/t");
    }
}
