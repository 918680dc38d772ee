//! Sends messages, confirmed: [`SqsPublisher`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry as Entry;
use futures_util::stream::{self, StreamExt};
use onceward::{Error, ErrorKind, Outgoing, Publisher};

use tokio::time::Instant;

use crate::endpoint::Endpoint;
use crate::fifo::is_fifo;
use crate::{error, facts, form};

/// The most entries of one call, by SQS's rules.
const BATCH: usize = 10;
/// The most calls at a time.
const CALLS: usize = 8;
/// The most bytes of one call that every SQS takes.
const MAX_BYTES: usize = 256 * 1024;
/// The largest message that any queue takes, body and attributes together.
const LARGEST_MESSAGE: usize = 1024 * 1024;
/// How long the limit of a queue is taken for known.
const LIMIT_AGE: Duration = Duration::from_secs(60);

/// Sends messages; SQS confirms each once it is stored.
///
/// A destination is the URL of a queue. A message that came from SQS is sent with its attributes as they were, names and types,
/// and with its trace header; other headers are attributes of the type `String`. SQS takes ten attributes: headers of ours
/// (`onceward-…`), those with names or bytes that SQS refuses, and what has no room, are packed into one, `onceward-headers`,
/// which [`SqsConsumer`](crate::SqsConsumer) unpacks. What SQS itself said of a delivery (`sqs-receive-count` and the like) is
/// not sent. [`Outgoing::id`] is the message's id for that consumer: the attribute `onceward-id`, or, where there is an
/// [`own_id`](Outgoing::own_id), the header `onceward-message-id` beside `onceward-id`.
///
/// A message that is larger than SQS or its queue takes, attributes included, fails with
/// [`ErrorKind::TooLarge`].
///
/// To a FIFO queue, the group is a hash of the order key, or of the id without one; a short, plain order key is the group
/// itself. The deduplication id is a hash of id, destination, generation and purpose: the same for each repeat, and new for a
/// redrive, which SQS would otherwise swallow within five minutes.
pub struct SqsPublisher {
    client: Client,
    call_timeout: Duration,
    /// The largest message of a queue, and when it was asked for.
    limits: tokio::sync::Mutex<HashMap<String, (Instant, Option<usize>)>>,
}

impl SqsPublisher {
    /// A publisher for the queues at `endpoint`. It connects with its first batch.
    ///
    /// # Cancel safety
    /// A dropped call leaves nothing behind.
    pub async fn open(endpoint: Endpoint) -> Self {
        Self::from_client(endpoint.client().await)
    }

    /// A publisher with the caller's client.
    pub fn from_client(client: Client) -> Self {
        Self { client, call_timeout: Duration::from_secs(4), limits: tokio::sync::Mutex::default() }
    }

    /// Sets how long a call may take, repeats included, until its outcome is called unknown; default 4 s. It should be less
    /// than the pipeline's publish timeout.
    #[must_use]
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.call_timeout = limit;
        self
    }

    /// Sends entries of one destination. If SQS refuses a call as a whole for what is in it, each message is sent alone, so
    /// that one that cannot be sent fails no other.
    async fn send(&self, url: &str, batch: Vec<Sized>) -> Vec<(usize, Result<(), Error>)> {
        let mut answers = Vec::with_capacity(batch.len());
        let mut calls = VecDeque::from([batch]);
        while let Some(call) = calls.pop_front() {
            match self.call(url, &call).await {
                Ok(outcomes) => {
                    for (item, outcome) in call.into_iter().zip(outcomes) {
                        let outcome = match outcome {
                            Err(error) if error.kind() == ErrorKind::Unsupported => {
                                Err(self.too_large(url, item.bytes).await.unwrap_or(error))
                            }
                            outcome => outcome,
                        };
                        answers.push((item.place, outcome));
                    }
                }
                Err(error) if error.kind() == ErrorKind::Unsupported && call.len() > 1 => {
                    calls.extend(call.into_iter().map(|item| vec![item]));
                }
                Err(error) => {
                    for item in call {
                        let large = match error.kind() {
                            ErrorKind::Unsupported => self.too_large(url, item.bytes).await,
                            _ => None,
                        };
                        answers.push((item.place, Err(large.unwrap_or_else(|| error.clone()))));
                    }
                }
            }
        }
        answers
    }

    /// One call; an error is of the call as a whole.
    async fn call(&self, url: &str, batch: &[Sized]) -> Result<Vec<Result<(), Error>>, Error> {
        let operation = || format!("send messages to queue {url}");
        let limits = TimeoutConfig::builder().operation_attempt_timeout(self.call_timeout / 2).build();
        let call = self
            .client
            .send_message_batch()
            .queue_url(url)
            .set_entries(Some(batch.iter().map(|item| item.entry.clone()).collect()))
            .customize()
            .config_override(aws_sdk_sqs::config::Builder::new().timeout_config(limits));
        let answer = match tokio::time::timeout(self.call_timeout, call.send()).await {
            Ok(answer) => answer.map_err(|error| error::sdk(operation(), &error))?,
            Err(_) => return Err(error::timeout(operation())),
        };
        let confirmed: std::collections::HashSet<_> =
            answer.successful.iter().map(|entry| entry.id()).collect();
        let failed: HashMap<_, _> = answer.failed.iter().map(|entry| (entry.id(), entry)).collect();
        let outcome = |item: &Sized| {
            let id = item.entry.id();
            if confirmed.contains(id) {
                return Ok(());
            }
            let Some(entry) = failed.get(id) else {
                return Err(Error::new(ErrorKind::Unknown, operation(), "SQS says nothing of this message"));
            };
            let (kind, what) = match entry.sender_fault() {
                true => (ErrorKind::Unsupported, "SQS refuses the message as it is"),
                false => error::coded(entry.code()),
            };
            let source = format!("{}: {}", entry.code(), entry.message().unwrap_or_default());
            Err(Error::new(kind, operation(), what).with_source(source))
        };
        Ok(batch.iter().map(outcome).collect())
    }

    /// Whether a message that was refused is larger than its queue takes; asked only then.
    async fn too_large(&self, url: &str, bytes: usize) -> Option<Error> {
        let known = self.limits.lock().await.get(url).copied();
        let limit = match known {
            Some((asked, limit)) if asked.elapsed() < LIMIT_AGE => limit,
            _ => {
                let limit = facts::largest_message(&self.client, url).await.ok().flatten();
                self.limits.lock().await.insert(url.to_owned(), (Instant::now(), limit));
                limit
            }
        };
        let limit = limit?;
        (bytes > limit).then(|| too_large(url, bytes, limit))
    }
}

/// The error of a message that can never be sent as it is.
fn too_large(url: &str, bytes: usize, limit: usize) -> Error {
    let what = format!(
        "with its attributes it has {bytes} bytes, and the queue takes {limit}; raise MaximumMessageSize of the queue (SQS \
         takes up to 1 MiB) or send less"
    );
    Error::new(ErrorKind::TooLarge, format!("send a message to queue {url}"), what)
}

/// An entry with its place in the batch and its size as SQS counts it.
struct Sized {
    place: usize,
    entry: Entry,
    bytes: usize,
}

#[async_trait]
impl Publisher for SqsPublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        let mut results: Vec<Option<Result<(), Error>>> = batch.iter().map(|_| None).collect();
        let mut by_destination: BTreeMap<&str, Vec<Sized>> = BTreeMap::new();
        for (place, outgoing) in batch.iter().enumerate() {
            match form::entry(place, outgoing) {
                Ok((_, bytes)) if bytes > LARGEST_MESSAGE => {
                    results[place] = Some(Err(too_large(&outgoing.destination, bytes, LARGEST_MESSAGE)));
                }
                Ok((entry, bytes)) => {
                    let destination = by_destination.entry(&outgoing.destination).or_default();
                    destination.push(Sized { place, entry, bytes });
                }
                Err(error) => results[place] = Some(Err(error)),
            }
        }
        for (url, entries) in by_destination {
            // One after the other for a FIFO queue, which keeps the order of calls, and of entries within a call.
            let at_once = if is_fifo(url) { 1 } else { CALLS };
            let calls: Vec<_> = chunks(entries).into_iter().map(|chunk| self.send(url, chunk)).collect();
            let mut answers = stream::iter(calls).buffer_unordered(at_once);
            while let Some(answers) = answers.next().await {
                for (place, result) in answers {
                    results[place] = Some(result);
                }
            }
        }
        let unsent = || Error::new(ErrorKind::Internal, "send a message", "it was in no call");
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(unsent()))).collect()
    }
}

/// Divides entries into calls.
fn chunks(entries: Vec<Sized>) -> Vec<Vec<Sized>> {
    let mut chunks: Vec<Vec<_>> = Vec::new();
    let mut bytes = 0;
    for item in entries {
        let size = item.bytes;
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < BATCH && bytes + size <= MAX_BYTES => chunk.push(item),
            _ => {
                bytes = 0;
                chunks.push(vec![item]);
            }
        }
        bytes += size;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_as_full_as_count_and_size_allow() {
        let entry = |place: usize, bytes: usize| {
            let entry = Entry::builder().id(place.to_string()).message_body("x").build().unwrap();
            Sized { place, entry, bytes }
        };
        let places = |sizes: &[usize]| -> Vec<Vec<usize>> {
            let entries = sizes.iter().enumerate().map(|(place, size)| entry(place, *size)).collect();
            chunks(entries).iter().map(|chunk| chunk.iter().map(|item| item.place).collect()).collect()
        };
        assert_eq!(places(&[1; 12]), [(0..10).collect::<Vec<_>>(), vec![10, 11]]);
        let half = MAX_BYTES / 2;
        assert_eq!(places(&[half, half, 1, MAX_BYTES, half]), [vec![0, 1], vec![2], vec![3], vec![4]]);
    }
}
