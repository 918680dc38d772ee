//! Publishes messages to topics: [`PubsubPublisher`].

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use google_cloud_pubsub::client::{BasePublisher, Publisher as TopicPublisher};
use google_cloud_pubsub::error::PublishError;
use google_cloud_pubsub::model::Message;
use onceward::{Error, ErrorKind, Outgoing, Publisher};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::connection::endpoint::PubsubEndpoint;
use crate::connection::names::Collection;
use crate::error;
use crate::format::outgoing::to_message;

/// How long the client library may wait for more messages: the batch is complete, and flushed, before.
const GATHER: Duration = Duration::from_secs(1);

/// Publishes messages; Pub/Sub has stored each when its result is `Ok`.
///
/// A destination is a topic's full name, or a short one in the endpoint's project. Headers become attributes; those that
/// Pub/Sub rejects (bytes that are not text, values of more than 1024 bytes, names that repeat or begin with `goog`) are packed
/// into attributes `onceward-headers`, which [`PubsubConsumer`](crate::PubsubConsumer) unpacks. Facts of Pub/Sub about a
/// delivery (`pubsub-…`) are not sent. [`Outgoing::id`] is the message's id for that consumer: the attribute `onceward-id`, or,
/// with an [`own_id`](Outgoing::own_id), `onceward-message-id` beside `onceward-id`.
///
/// The order key is the ordering key if it is text of at most 1024 bytes, and a hash of it otherwise. Messages of one key are
/// published in order. If one of them fails, those after it in the batch are not sent, and fail as well; the key is usable
/// again with the next call.
///
/// A message that is larger than Pub/Sub accepts, attributes included, fails with [`ErrorKind::TooLarge`].
pub struct PubsubPublisher {
    /// `None` for a client of the caller.
    endpoint: Option<PubsubEndpoint>,
    client: Mutex<BasePublisher>,
    project: Option<String>,
    call_timeout: Duration,
}

impl PubsubPublisher {
    /// Opens a publisher for the topics at `endpoint`. It connects with its first batch.
    ///
    /// # Errors
    /// `Config` if the endpoint is invalid, `Denied` without usable credentials.
    ///
    /// # Cancel safety
    /// A dropped call has no effect.
    pub async fn open(endpoint: PubsubEndpoint) -> Result<Self, Error> {
        let client = endpoint.publisher().await?;
        let project = endpoint.project.clone();
        Ok(Self { endpoint: Some(endpoint), project, ..Self::from_client(client) })
    }

    /// Builds a publisher with the caller's client. Destinations must be full names.
    pub fn from_client(client: BasePublisher) -> Self {
        let client = Mutex::new(client);
        Self { endpoint: None, client, project: None, call_timeout: Duration::from_secs(4) }
    }

    /// Sets the timeout of a batch, repeats included, after which its outcome is unknown; default 4 s. It should be
    /// shorter than the pipeline's publish timeout.
    #[must_use]
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.call_timeout = limit;
        self
    }

    /// A publisher of one topic, for one batch: the client library keeps a task for each ordering key that it has seen, and
    /// refuses a key after a failure.
    fn topic_publisher(&self, topic: &str) -> TopicPublisher {
        let client = self.client.lock().clone();
        client.publisher(topic).set_message_count_threshold(1000_u32).set_delay_threshold(GATHER).build()
    }

    /// Publishes messages to one topic. If Pub/Sub rejects a request because of its content, each of its messages is sent
    /// alone, so that an invalid one fails alone.
    async fn send(&self, topic: &str, batch: Vec<(usize, Message)>) -> Vec<(usize, Result<(), Error>)> {
        let deadline = Instant::now() + self.call_timeout;
        let (indices, messages): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let publisher = self.topic_publisher(topic);
        let results = publish_all(&publisher, &messages, deadline).await;
        let is_alone = messages.len() == 1;
        let mut answers = Vec::with_capacity(indices.len());
        let mut timed_out = false;
        let has_invalid = results.iter().any(is_invalid);
        for ((index, message), result) in indices.into_iter().zip(messages).zip(results) {
            let repeat = !is_alone
                && (is_invalid(&result)
                    || has_invalid && matches!(result, Some(Err(PublishError::OrderingKeyPaused))));
            let result = if repeat {
                publisher.resume_publish(message.ordering_key.clone());
                publish_all(&publisher, &[message], deadline).await.pop().flatten()
            } else {
                result
            };
            answers.push((
                index,
                match result {
                    Some(Ok(())) => Ok(()),
                    Some(Err(failed)) => Err(error::publish(topic, &failed)),
                    None => {
                        timed_out = true;
                        Err(error::timeout(format!("publish to {topic}")))
                    }
                },
            ));
        }
        if timed_out {
            self.reconnect().await;
        }
        answers
    }

    /// Replaces the client, and so the connection, which may have died silently.
    async fn reconnect(&self) {
        let Some(endpoint) = &self.endpoint else { return };
        match endpoint.publisher().await {
            Ok(client) => *self.client.lock() = client,
            Err(error) => {
                tracing::warn!(?error, "publisher not replaced after a timeout; the old one is used")
            }
        }
    }
}

/// Publishes messages in order; `None` for one without an answer by `deadline`.
async fn publish_all(
    publisher: &TopicPublisher,
    messages: &[Message],
    deadline: Instant,
) -> Vec<Option<Result<(), PublishError>>> {
    let sent: Vec<_> = messages.iter().map(|message| publisher.publish(message.clone())).collect();
    let answers = join_all(sent.into_iter().map(async |sent| {
        let answer = tokio::time::timeout_at(deadline, sent).await.ok()?;
        Some(answer.map(drop))
    }));
    // Sends what the client library would still gather.
    let (answers, _) = tokio::join!(answers, tokio::time::timeout_at(deadline, publisher.flush()));
    answers
}

fn is_invalid(result: &Option<Result<(), PublishError>>) -> bool {
    let Some(Err(PublishError::Rpc(error))) = result else { return false };
    error::classify("publish", error).kind() == ErrorKind::Unsupported
}

impl fmt::Debug for PubsubPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PubsubPublisher").field("call_timeout", &self.call_timeout).finish_non_exhaustive()
    }
}

#[async_trait]
impl Publisher for PubsubPublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        let mut results: Vec<Option<Result<(), Error>>> = batch.iter().map(|_| None).collect();
        let mut by_topic: BTreeMap<String, Vec<(usize, Message)>> = BTreeMap::new();
        for (index, outgoing) in batch.iter().enumerate() {
            let topic = Collection::Topics.full_name(&outgoing.destination, self.project.as_deref());
            match topic.and_then(|topic| Ok((topic, to_message(outgoing)?))) {
                Ok((topic, message)) => by_topic.entry(topic).or_default().push((index, message)),
                Err(error) => results[index] = Some(Err(error)),
            }
        }
        let calls = by_topic.into_iter().map(async |(topic, batch)| self.send(&topic, batch).await);
        for (index, result) in join_all(calls).await.into_iter().flatten() {
            results[index] = Some(result);
        }
        let unsent = || Error::new(ErrorKind::Internal, "publish a message", "it was not part of any call");
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(unsent()))).collect()
    }
}
