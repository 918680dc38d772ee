//! Forwards records to retry topics: [`RetryForwarder`].

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind, Message, Outgoing, OwnHeaders, Publisher};

use crate::config::TopicConfig;
use crate::publisher::KafkaPublisher;
use crate::retry::copy::create_copy;
use crate::retry::topic::{RetryTopic, max_wait};

/// How long a topic that did not confirm a copy is not used.
const REST: Duration = Duration::from_secs(10);

/// The retry topics of a consumer, and the publisher of the copies.
pub(crate) struct RetryForwarder {
    publisher: KafkaPublisher,
    pub(super) topics: Vec<RetryTopic>,
    own_headers: OwnHeaders,
    /// Until when a topic that did not confirm a copy is not used.
    resting: Mutex<HashMap<String, Instant>>,
}

impl RetryForwarder {
    pub(crate) fn new(publisher: KafkaPublisher, topics: &TopicConfig) -> Self {
        let (topics, own_headers) = (topics.retry_topics.clone(), topics.own_headers.clone());
        Self { publisher, topics, own_headers, resting: Mutex::default() }
    }

    fn resting(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_resting(&self, topic: &str) -> bool {
        self.resting().get(topic).is_some_and(|until| Instant::now() < *until)
    }

    /// Returns the copy of `message` for the delay `after`; `None` if the message waits in this process.
    pub(crate) fn copy(&self, message: &Message, after: Duration) -> Option<Outgoing> {
        if message.defect().is_some() {
            return None;
        }
        let fitting = self.topics.iter().filter(|topic| topic.delay <= after);
        let topic = fitting.max_by_key(|topic| topic.delay).filter(|topic| after <= max_wait(topic.delay))?;
        (!self.is_resting(&topic.name)).then(|| create_copy(message, &topic.name, after, &self.own_headers))
    }

    /// Publishes a copy. Returns true if it is confirmed. A topic that does not confirm is not used for a while, so that records
    /// do not queue up for it, or in it as copies of unknown outcome.
    pub(crate) async fn publish(&self, copy: &Outgoing) -> bool {
        let topic = &copy.destination;
        let sent = self.publisher.publish(std::slice::from_ref(copy)).await;
        match sent.into_iter().collect::<Result<(), Error>>() {
            Ok(()) => {
                if self.resting().remove(topic).is_some() {
                    tracing::info!(topic, "retry topic accepts records again");
                }
                true
            }
            Err(error) if error.kind() == ErrorKind::TooLarge => {
                tracing::debug!(%error, topic, "record too large for its retry topic; it waits in this process");
                false
            }
            Err(error) => {
                let until = Instant::now() + REST;
                if self.resting().insert(topic.clone(), until).is_none() {
                    tracing::warn!(
                        %error, topic,
                        "publishing to a retry topic failed; its records wait in this process, and hold up the offsets of their \
                         partitions"
                    );
                }
                false
            }
        }
    }
}
