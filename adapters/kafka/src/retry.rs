//! Lets records wait for their next attempt in topics: [`RetryTopic`].

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use onceward::{Error, Message, Outgoing, Position, Publisher};

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
/// neither its partition's offset nor this process. The copy keeps payload, key, headers and, whatever topic it waits in, the
/// position it first had. It loses its place in the order, and its timestamp.
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

/// The retry topics of a consumer, and who publishes into them.
pub(crate) struct Waiting {
    pub(crate) publisher: KafkaPublisher,
    pub(crate) topics: Vec<RetryTopic>,
}

impl Waiting {
    /// The copy of `message` that waits `after`; `None` for what waits in this process.
    pub(crate) fn copy(&self, message: &Message, after: Duration) -> Option<Outgoing> {
        if message.defect().is_some() {
            return None;
        }
        let fitting = self.topics.iter().filter(|topic| topic.delay <= after);
        let topic = fitting.max_by_key(|topic| topic.delay)?;
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

    /// Sends copies; true for each that is confirmed.
    pub(crate) async fn put(&self, copies: &[Outgoing]) -> Vec<bool> {
        let sent = self.publisher.publish(copies).await;
        let confirmed = |result: Result<(), Error>| {
            if let Err(error) = &result {
                tracing::warn!(%error, "a record cannot wait in its retry topic, and waits in this process");
            }
            result.is_ok()
        };
        sent.into_iter().map(confirmed).collect()
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
    /// Reads the headers of a copy, and takes them away. What is no copy waits for nothing.
    pub(crate) fn read(headers: &mut Vec<(Box<str>, Bytes)>) -> Self {
        let mut copied = Self::default();
        headers.retain(|(name, value)| {
            let Ok(text) = std::str::from_utf8(value) else { return true };
            match &**name {
                DUE => copied.wait = text.parse().map_or(Duration::ZERO, until),
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
        Waiting { publisher, topics: topics.into() }
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
        let read = Copied::read(&mut headers);
        assert_eq!((read.origin.as_deref(), read.position), (Some("orders"), Some(position)));
        assert!((Duration::from_secs(50)..=Duration::from_secs(59)).contains(&read.wait), "{:?}", read.wait);
        assert_eq!(headers, [("a".into(), Bytes::from("b"))]);
    }

    #[test]
    fn what_is_no_copy_waits_for_nothing_and_keeps_its_headers() {
        let own = vec![("a".into(), Bytes::from("b")), (DUE.into(), Bytes::from_static(b"\xff"))];
        let mut headers = own.clone();
        assert_eq!(Copied::read(&mut headers), Copied::default());
        assert_eq!(headers, own);
    }
}
