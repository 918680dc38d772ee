//! Topics in which records wait for their next attempt: [`RetryTopic`].

use std::ops::RangeInclusive;
use std::time::Duration;

use onceward::Error;

use crate::error;

/// A topic in which records wait for their next attempt.
///
/// A record whose delay is at least `delay` is copied to this topic, and once the copy is confirmed its original counts as
/// settled, so that it holds up neither its partition's offset nor this process. The copy keeps payload, key, headers, timestamp
/// and the position of the original, whichever topics it passes through; it loses its place in the order. Records wait in this
/// process instead if their delay exceeds twenty times the longest `delay`, or if the topic does not accept records at the
/// moment.
///
/// The records of a topic wait behind each other: give topics delays a factor of two to five apart.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryTopic {
    /// The name. The topic must exist, and its retention must exceed the longest delay.
    pub name: String,
    /// The shortest delay for which the topic is used, from 1s to 7d.
    pub delay: Duration,
}

impl RetryTopic {
    /// The range of [`delay`](Self::delay).
    pub const DELAY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

    /// Creates the retry topic `name` for delays of at least `delay`.
    pub fn new(name: impl Into<String>, delay: Duration) -> Self {
        Self { name: name.into(), delay }
    }
}

/// A record waits in a topic at most this many times the topic's delay, since the records behind it wait as well.
const MAX_DELAY_FACTOR: u32 = 20;

/// Returns the longest wait in a topic for `delay`.
pub(crate) fn max_wait(delay: Duration) -> Duration {
    delay.saturating_mul(MAX_DELAY_FACTOR)
}

/// Returns the longest wait of a copy in the topic `name`.
pub(crate) fn max_wait_in(topics: &[RetryTopic], name: &str) -> Duration {
    topics.iter().find(|topic| topic.name == name).map_or(Duration::ZERO, |topic| max_wait(topic.delay))
}

/// Checks the retry topics of a source that consumes `topics`.
///
/// # Errors
/// [`ErrorKind::Config`](onceward::ErrorKind::Config) with the fix.
pub(crate) fn check_retry_topics(retry_topics: &[RetryTopic], topics: &[String]) -> Result<(), Error> {
    let invalid = |what: &'static str| Err(error::config_error("use retry topics", what));
    for (index, topic) in retry_topics.iter().enumerate() {
        if topic.name.is_empty() {
            return invalid("a retry topic has no name; set one");
        }
        if topics.contains(&topic.name) || retry_topics[..index].iter().any(|other| other.name == topic.name)
        {
            return invalid("a retry topic is named twice, or is also consumed; use distinct names");
        }
        if !RetryTopic::DELAY.contains(&topic.delay) {
            return invalid("the delay of a retry topic must be 1 s to 7 d");
        }
    }
    Ok(())
}
