//! Lets records wait for their next attempt in topics: [`RetryTopic`].

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use onceward::dead_letter::{HEADER_GENERATION, HEADER_TIMESTAMP};
use onceward::own_headers::Seal;
use onceward::telemetry::RateLimited;
use onceward::{Error, ErrorKind, HeaderTrust, Message, Outgoing, OwnHeaders, Position, Publisher};

use crate::config::TopicConfig;
use crate::error;
use crate::publisher::KafkaPublisher;

/// When the record is to be handled again, in milliseconds since 1970.
const DUE: &str = "onceward-retry-due-ms";
/// The topic it came from first.
const ORIGIN: &str = "onceward-retry-origin";
/// Where it stood there: incarnation, partition and offset.
const POSITION: &str = "onceward-retry-position";
/// The code over these, and over when the message was made.
const MAC: &str = "onceward-retry-mac";
/// What proves that a copy is ours. What a letter says of itself has a seal of its own, which goes along.
const SEAL: Seal = Seal { header: MAC, covers: &[DUE, ORIGIN, POSITION, HEADER_TIMESTAMP] };

/// A topic in which records wait for their next attempt.
///
/// A record whose delay is at least `delay` is copied there, confirmed, and its original counts as settled, so that it holds up
/// neither its partition's offset nor this process. The copy keeps payload, key, headers, timestamp and, whatever topic it waits
/// in, the position it first had. It loses its place in the order. A delay of more than twenty times the longest `delay` is spent
/// in this process, and so are those of records that the topic does not take at the moment.
///
/// The records of a topic wait behind each other: give topics for delays a factor of two to five apart.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryTopic {
    /// Its name. It must exist; its retention must be longer than the longest delay.
    pub name: String,
    /// The shortest delay that is worth the way, 1 s to 7 d.
    pub delay: Duration,
}

impl RetryTopic {
    /// The topic `name`, for delays of at least `delay`.
    pub fn new(name: impl Into<String>, delay: Duration) -> Self {
        Self { name: name.into(), delay }
    }
}

pub(crate) fn check(retry_topics: &[RetryTopic], topics: &[String]) -> Result<(), Error> {
    let wrong = |what: &'static str| Err(error::config("use retry topics", what));
    for (index, topic) in retry_topics.iter().enumerate() {
        if topic.name.is_empty() {
            return wrong("a retry topic has no name; give it one");
        }
        if topics.contains(&topic.name) || retry_topics[..index].iter().any(|other| other.name == topic.name)
        {
            return wrong("a retry topic is named twice, or is consumed as well; give each another name");
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600)).contains(&topic.delay) {
            return wrong("the delay of a retry topic must be 1 s to 7 d");
        }
    }
    Ok(())
}

/// How many times its own delay a record waits in a topic, at most: what stands behind it waits as well.
const MOST_TIMES: u32 = 20;
/// How far the clocks of workers may be apart.
const CLOCKS: Duration = Duration::from_secs(60);
/// How long a topic that did not confirm a copy is not used.
const REST: Duration = Duration::from_secs(10);

/// The longest wait in a topic for `delay`.
fn longest(delay: Duration) -> Duration {
    delay.saturating_mul(MOST_TIMES)
}

/// The longest wait of a copy in the topic `name`.
pub(crate) fn longest_in(topics: &[RetryTopic], name: &str) -> Duration {
    topics.iter().find(|topic| topic.name == name).map_or(Duration::ZERO, |topic| longest(topic.delay))
}

/// The retry topics of a consumer, and who publishes into them.
pub(crate) struct Waiting {
    publisher: KafkaPublisher,
    topics: Vec<RetryTopic>,
    own: OwnHeaders,
    /// Until when a topic that did not confirm is not used.
    resting: Mutex<HashMap<String, Instant>>,
}

impl Waiting {
    pub(crate) fn new(publisher: KafkaPublisher, topics: &TopicConfig) -> Self {
        let (topics, own) = (topics.retry_topics.clone(), topics.own_headers.clone());
        Self { publisher, topics, own, resting: Mutex::default() }
    }

    fn resting(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rests(&self, topic: &str) -> bool {
        self.resting().get(topic).is_some_and(|until| Instant::now() < *until)
    }

    /// The copy of `message` that waits `after`; `None` for what waits in this process.
    pub(crate) fn copy(&self, message: &Message, after: Duration) -> Option<Outgoing> {
        if message.defect().is_some() {
            return None;
        }
        let fitting = self.topics.iter().filter(|topic| topic.delay <= after);
        let topic = fitting.max_by_key(|topic| topic.delay).filter(|topic| after <= longest(topic.delay))?;
        if self.rests(&topic.name) {
            return None;
        }
        // A producer's of these names would count beside ours.
        let is_ours = |name: &str| matches!(name, DUE | ORIGIN | POSITION | MAC);
        let theirs = message.headers().filter(|(name, _)| !is_ours(name));
        let mut headers: Vec<(String, Bytes)> =
            theirs.map(|(name, value)| (name.to_owned(), value.clone())).collect();
        let due_ms = (SystemTime::now() + after).duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        headers.push((DUE.to_owned(), due_ms.to_string().into()));
        if let (Some(origin), Some(position)) = (message.origin(), message.position()) {
            headers.push((ORIGIN.to_owned(), origin.to_owned().into()));
            let position = format!("{}:{}:{}", position.incarnation, position.partition, position.offset);
            headers.push((POSITION.to_owned(), position.into()));
        }
        self.seal(message, &mut headers);
        Some(Outgoing {
            destination: topic.name.clone(),
            // No id of its own: it is the same message.
            id: String::new(),
            order_key: message.order_key().cloned(),
            headers,
            payload: message.payload().clone(),
            null_payload: message.has_null_payload(),
            timestamp: message.timestamp(),
            native: message.native().cloned(),
            ..Outgoing::default()
        })
    }

    /// Adds the code over our headers, and before it what the publisher would add of them.
    fn seal(&self, message: &Message, headers: &mut Vec<(String, Bytes)>) {
        if !self.own.seals() {
            return;
        }
        let made = message.timestamp().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        if let Some(made) = made.filter(|_| message.header(HEADER_TIMESTAMP).is_none()) {
            headers.push((HEADER_TIMESTAMP.to_owned(), made.as_millis().to_string().into()));
        }
        let pairs = || headers.iter().map(|(name, value)| (name.as_str(), &value[..]));
        let payload = (!message.has_null_payload()).then_some(&message.payload()[..]);
        if let Some((name, value)) = self.own.seal_parts(&SEAL, pairs, payload) {
            headers.push((name.to_owned(), value));
        }
    }

    /// Sends a copy; true if it is confirmed. A topic that does not confirm rests for a while, so that records do not pile up
    /// in front of it, or in it as copies that were thought lost.
    pub(crate) async fn put(&self, copy: &Outgoing) -> bool {
        let topic = &copy.destination;
        let sent = self.publisher.publish(std::slice::from_ref(copy)).await;
        match sent.into_iter().collect::<Result<(), Error>>() {
            Ok(()) => {
                if self.resting().remove(topic).is_some() {
                    tracing::info!(topic, "retries wait in their topic again");
                }
                true
            }
            Err(error) if error.kind() == ErrorKind::TooLarge => {
                tracing::debug!(%error, topic, "a record is too large for its retry topic, and waits in this process");
                false
            }
            Err(error) => {
                let until = Instant::now() + REST;
                if self.resting().insert(topic.clone(), until).is_none() {
                    tracing::warn!(
                        %error, topic,
                        "a retry topic does not take records; they wait in this process until it does, and their partitions' \
                         offsets with them"
                    );
                }
                false
            }
        }
    }
}

/// What the headers of a copy say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) origin: Option<Arc<str>>,
    pub(crate) position: Option<Position>,
    /// How long it is still to wait.
    pub(crate) wait: Duration,
    /// When its message was made.
    pub(crate) made: Option<SystemTime>,
}

impl Copied {
    /// Reads the headers of a copy, and takes them away. What is no copy waits for nothing, and what is not believed only
    /// says when it is due: whoever may write to the topic could name the position of another record. No copy of ours is due
    /// later than `longest` from now, so that one which is waits for nothing either.
    pub(crate) fn read(
        headers: &mut Vec<(Box<str>, Bytes)>,
        payload: Option<&[u8]>,
        longest: Duration,
        own: &OwnHeaders,
    ) -> Self {
        let pairs = || headers.iter().map(|(name, value)| (&**name, &value[..]));
        let is_believed = own.believes_parts(&SEAL, pairs, payload);
        // With a secret, whatever is not sealed is a record like any other.
        let may_wait = is_believed || own.trust() == HeaderTrust::Ignore;
        let mut copied = Self::default();
        // A letter has this one itself, under its own seal.
        let is_letter = headers.iter().any(|(name, _)| &**name == HEADER_GENERATION);
        headers.retain(|(name, value)| {
            let Ok(text) = std::str::from_utf8(value) else { return true };
            match &**name {
                DUE if may_wait => copied.wait = text.parse().map_or(Duration::ZERO, until),
                ORIGIN if is_believed => copied.origin = Some(text.into()),
                POSITION if is_believed => copied.position = position(text),
                HEADER_TIMESTAMP if is_believed => {
                    copied.made =
                        text.parse().ok().and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
                    return is_letter;
                }
                DUE | ORIGIN | POSITION | MAC => {}
                _ => return true,
            }
            false
        });
        if copied.wait > longest.saturating_add(CLOCKS) {
            copied.wait = Duration::ZERO;
            if let Some(left_out) = TOO_LATE.allow("") {
                tracing::warn!(
                    longest = ?longest, left_out,
                    "a record of a retry topic is due later than any copy of ours can be, and is handled at once: see who may \
                     write to the topic"
                );
            }
        }
        copied
    }
}

/// Records that are due too late.
static TOO_LATE: LazyLock<RateLimited> = LazyLock::new(RateLimited::default);

fn until(due_ms: u64) -> Duration {
    let due = UNIX_EPOCH + Duration::from_millis(due_ms.min(1 << 48));
    due.duration_since(SystemTime::now()).unwrap_or_default()
}

fn position(text: &str) -> Option<Position> {
    let mut parts = text.rsplitn(3, ':');
    let (offset, partition) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(Position { incarnation: parts.next()?.into(), partition, offset })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
