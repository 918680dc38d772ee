//! Replies to messages with `reply_to`: [`RabbitmqReplies`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::ShortString;
use onceward::adapter::{HEADER_RESULT, Native, Replied, Replies, Reply};
use onceward::{Error, ErrorKind, GatheredPublisher, Message, Outgoing, Publisher};
use tokio::sync::Semaphore;

use crate::connection::endpoint::RabbitmqEndpoint;
use crate::error;
use crate::format::native::RabbitmqForm;
use crate::format::property_headers;
use crate::publish::confirms::{NotTaken, not_taken};
use crate::publisher::RabbitmqPublisher;

/// Sends the results of completed messages to the queue in their property `reply_to`, with their `correlation_id`, for
/// [`PipelineBuilder::replies`](onceward::PipelineBuilder::replies).
///
/// A reply is persistent and confirmed, and goes through the default exchange; `amq.rabbitmq.reply-to` works as well. The header
/// `onceward-id` is the same in all replies with one result, so that a requester recognises copies. A reply that no queue takes, that
/// the broker refuses twice (its queue is full), or that would go to a queue of the source is undeliverable. The broker does not report
/// a requester that has left its `amq.rabbitmq.reply-to`: such a reply counts as sent.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use onceward::{HandlerError, MemoryStore, Message, Pipeline, Scope, handler};
/// use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqReplies};
///
/// async fn charge(message: Message) -> Result<String, HandlerError> {
///     Ok(format!("charged for {} bytes", message.payload().len()))
/// }
///
/// let url = "amqps://user:password@rabbit.example/%2f";
/// let requests = RabbitmqConsumer::open(RabbitmqConfig::new(url, "requests")).await?;
/// let replies = RabbitmqReplies::open(RabbitmqEndpoint::new(url), "requests").await?;
/// let pipeline = Pipeline::builder(Scope::parse("billing")?, requests, Arc::new(MemoryStore::new()))
///     .park_exhausted()
///     .replies(Arc::new(replies))
///     .handler(handler(charge))?;
/// # let _ = pipeline;
/// # Ok(())
/// # }
/// ```
///
/// The sender of a message names the queue, and RabbitMQ lets a login that may write to the default exchange write to every queue
/// of the virtual host. Where senders do not trust each other, give requests and their replies a virtual host of their own.
pub struct RabbitmqReplies {
    publisher: GatheredPublisher,
    room: Semaphore,
    source: String,
}

/// Replies in one batch, at most.
const BATCH: usize = 256;

/// How many replies may wait for their confirms at once. What has been handed to the publisher is published even after its call was given
/// up: while the broker blocks publishers, a reply that is tried again every few seconds would pile up copies of itself.
const MOST_IN_FLIGHT: usize = 2 * BATCH;

impl RabbitmqReplies {
    /// Connects, for the messages of the queue `source`.
    ///
    /// # Errors
    /// As [`RabbitmqPublisher::open`].
    pub async fn open(endpoint: RabbitmqEndpoint, source: impl Into<String>) -> Result<Self, Error> {
        Ok(Self::new(RabbitmqPublisher::open(endpoint).await?, source))
    }

    /// Replies by `publisher`, for the messages of the queue `source`. Its confirm timeout should be shorter than the pipeline's
    /// publish timeout. What is to be sent at the same time is sent in one batch, by a task in the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(publisher: RabbitmqPublisher, source: impl Into<String>) -> Self {
        // Its own error, which names the cause, arrives first.
        let limit = publisher.limit() + Duration::from_secs(1);
        let publisher = GatheredPublisher::new(Arc::new(publisher), BATCH, limit);
        Self { publisher, room: Semaphore::new(MOST_IN_FLIGHT), source: source.into() }
    }

    /// True for the source and its delay queues: a reply there would be handled as a message.
    fn leads_back(&self, queue: &str) -> bool {
        queue
            .strip_prefix(self.source.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(".wait."))
    }
}

impl fmt::Debug for RabbitmqReplies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitmqReplies").field("source", &self.source).finish_non_exhaustive()
    }
}

fn properties(message: &Message) -> Option<&BasicProperties> {
    Some(&message.native().and_then(Native::get::<RabbitmqForm>)?.properties)
}

fn reply_to(message: &Message) -> Option<&str> {
    let queue = properties(message)?.reply_to().as_ref().map(ShortString::as_str);
    queue.filter(|queue| !queue.is_empty())
}

fn outgoing(reply: &Reply<'_>) -> Outgoing {
    let correlation = properties(reply.message).and_then(|properties| properties.correlation_id().as_ref());
    let correlation = correlation
        .map(|id| (property_headers::CORRELATION_ID, Bytes::copy_from_slice(id.as_str().as_bytes())));
    let absent = reply.result.is_none().then_some((HEADER_RESULT, Bytes::from_static(b"absent")));
    Outgoing {
        // With a slash in front it is a queue, whatever its name.
        destination: format!("/{}", reply_to(reply.message).unwrap_or_default()),
        own_id: reply.key.map(|key| key.to_string()).unwrap_or_default(),
        headers: correlation
            .into_iter()
            .chain(absent)
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        payload: reply.result.cloned().unwrap_or_default(),
        ..Outgoing::default()
    }
}

#[async_trait]
impl Replies for RabbitmqReplies {
    fn wanted_by(&self, message: &Message) -> bool {
        reply_to(message).is_some()
    }

    async fn reply(&self, replies: &[Reply<'_>]) -> Vec<Result<Replied, Error>> {
        let leads_back =
            |reply: &Reply<'_>| reply_to(reply.message).is_some_and(|queue| self.leads_back(queue));
        let batch: Vec<_> = replies.iter().filter(|reply| !leads_back(reply)).map(outgoing).collect();
        let mut published = Vec::with_capacity(batch.len());
        for part in batch.chunks(BATCH) {
            let _room = self.room.acquire_many(part.len() as u32).await;
            published.extend(self.publisher.publish(part).await);
        }
        let mut published = published.into_iter();
        let answer = |reply: &Reply<'_>| {
            if leads_back(reply) {
                let what = "reply_to is a queue of the source, where the reply would be handled as a message";
                return Ok(Replied::Undeliverable(error::config("send a reply", what)));
            }
            match published.next() {
                Some(Ok(())) => Ok(Replied::Sent),
                Some(Err(error)) => match not_taken(&error) {
                    Some(NotTaken::Refused) => Ok(Replied::Refused(error)),
                    Some(NotTaken::Returned) => Ok(Replied::Undeliverable(error)),
                    None if error.kind() == ErrorKind::TooLarge => Ok(Replied::Undeliverable(error)),
                    None => Err(error),
                },
                None => Err(error::timeout("send a reply", "the publisher gave no answer")),
            }
        };
        replies.iter().map(answer).collect()
    }
}
