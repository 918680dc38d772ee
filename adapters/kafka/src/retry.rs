//! Lets records wait for their next attempt in topics: [`RetryTopic`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use onceward::{Error, ErrorKind, Message, Outgoing, Position, Publisher};

use crate::error;
use crate::publisher::KafkaPublisher;

/// When the record is to be handled again, in milliseconds since 1970.
const DUE: &str = "onceward-retry-due-ms";
/// The topic it came from first.
const ORIGIN: &str = "onceward-retry-origin";
/// Where it stood there: incarnation, partition and offset.
const POSITION: &str = "onceward-retry-position";

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
    /// Until when a topic that did not confirm is not used.
    resting: Mutex<HashMap<String, Instant>>,
}

impl Waiting {
    pub(crate) fn new(publisher: KafkaPublisher, topics: Vec<RetryTopic>) -> Self {
        Self { publisher, topics, resting: Mutex::default() }
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
        let mut headers: Vec<(String, Bytes)> =
            message.headers().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        let due_ms = (SystemTime::now() + after).duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        headers.push((DUE.to_owned(), due_ms.to_string().into()));
        if let (Some(origin), Some(position)) = (message.origin(), message.position()) {
            headers.push((ORIGIN.to_owned(), origin.to_owned().into()));
            let position = format!("{}:{}:{}", position.incarnation, position.partition, position.offset);
            headers.push((POSITION.to_owned(), position.into()));
        }
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
}

impl Copied {
    /// Reads the headers of a copy, and takes them away. What is no copy waits for nothing. Whoever may write to the topic can
    /// name any time: none waits longer than `longest`.
    pub(crate) fn read(headers: &mut Vec<(Box<str>, Bytes)>, longest: Duration) -> Self {
        let mut copied = Self::default();
        headers.retain(|(name, value)| {
            let Ok(text) = std::str::from_utf8(value) else { return true };
            match &**name {
                DUE => copied.wait = text.parse().map_or(Duration::ZERO, until).min(longest),
                ORIGIN => copied.origin = Some(text.into()),
                POSITION => copied.position = position(text),
                _ => return true,
            }
            false
        });
        copied
    }
}

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
mod tests {
    use super::*;

    fn waiting() -> Waiting {
        let publisher = KafkaPublisher::new(["127.0.0.1:1"], &Default::default()).unwrap();
        let topics = [("long", 60), ("short", 5)];
        let topics = topics.map(|(name, secs)| RetryTopic::new(name, Duration::from_secs(secs)));
        Waiting::new(publisher, topics.into())
    }

    #[test]
    fn a_copy_goes_where_the_delay_fits_and_reads_back_as_its_original() {
        let position = Position { incarnation: "cluster/id:1".into(), partition: 3, offset: 9 };
        let message = Message::builder("pay")
            .header("a", "b")
            .position(position.clone())
            .origin("orders".into())
            .build();
        let waiting = waiting();
        assert_eq!(waiting.copy(&message, Duration::from_secs(4)), None);
        let copy = waiting.copy(&message, Duration::from_secs(59)).unwrap();
        assert_eq!(copy.destination, "short");
        assert_eq!(waiting.copy(&message, Duration::from_secs(600)).unwrap().destination, "long");
        let mut headers =
            copy.headers.into_iter().map(|(name, value)| (name.into_boxed_str(), value)).collect();
        let read = Copied::read(&mut headers, Duration::from_secs(600));
        assert_eq!((read.origin.as_deref(), read.position), (Some("orders"), Some(position)));
        assert!((Duration::from_secs(50)..=Duration::from_secs(59)).contains(&read.wait), "{:?}", read.wait);
        assert_eq!(headers, [("a".into(), Bytes::from("b"))]);
    }

    #[test]
    fn no_delay_is_too_long_and_a_due_time_that_nobody_meant_is_cut() {
        let (waiting, message) = (waiting(), Message::builder("pay").build());
        assert_eq!(waiting.copy(&message, Duration::MAX), None, "it waits in the process");
        let mut headers = vec![(DUE.into(), Bytes::from_static(b"99999999999999"))];
        let longest = longest_in(&waiting.topics, "short");
        assert_eq!(Copied::read(&mut headers, longest).wait, Duration::from_secs(100));
    }

    #[tokio::test]
    async fn a_topic_that_does_not_confirm_rests_and_records_wait_in_the_process() {
        let properties = [("message.timeout.ms".to_owned(), "100".to_owned())];
        let publisher = KafkaPublisher::new(["127.0.0.1:1"], &properties.into()).unwrap();
        let waiting = Waiting::new(publisher, waiting().topics);
        let (message, after) = (Message::builder("pay").build(), Duration::from_secs(6));
        let copy = waiting.copy(&message, after).unwrap();
        assert!(!waiting.put(&copy).await);
        assert_eq!(waiting.copy(&message, after), None);
        assert!(waiting.copy(&message, Duration::from_secs(60)).is_some(), "another topic");
    }

    #[test]
    fn what_is_no_copy_waits_for_nothing_and_keeps_its_headers() {
        let own = vec![("a".into(), Bytes::from("b")), (DUE.into(), Bytes::from_static(b"\xff"))];
        let mut headers = own.clone();
        assert_eq!(Copied::read(&mut headers, Duration::MAX), Copied::default());
        assert_eq!(headers, own);
    }
}
