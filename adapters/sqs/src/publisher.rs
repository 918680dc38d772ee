//! Sends messages to SQS queues: [`SqsPublisher`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry as Entry;
use futures_util::stream::{self, StreamExt};
use onceward::{Error, ErrorKind, Outgoing, Publisher};

use tokio::time::Instant;

use crate::connection::endpoint::SqsEndpoint;
use crate::format::fifo::is_fifo;
use crate::format::native;
use crate::{error, inspect};

/// The most entries of one call, an SQS limit.
const BATCH: usize = 10;
/// The most concurrent calls.
const CALLS: usize = 8;
/// The most bytes of one call that every SQS endpoint accepts.
const MAX_BYTES: usize = 256 * 1024;
/// The largest message that any queue accepts, body and attributes together, in bytes.
const LARGEST_MESSAGE: usize = 1024 * 1024;
/// How long a queue's size limit is cached.
const LIMIT_AGE: Duration = Duration::from_secs(60);

/// Sends messages; SQS has stored each when its result is `Ok`.
///
/// A destination is the URL of a queue. A message from SQS is sent with its attributes unchanged, names and types, and
/// with its trace header; other headers become attributes of the type `String`. SQS accepts ten attributes: our headers
/// (`onceward-…`), headers with names or bytes that SQS rejects, and those beyond the limit are packed into one,
/// `onceward-headers`, which [`SqsConsumer`](crate::SqsConsumer) unpacks. Facts of SQS about a delivery
/// (`sqs-receive-count` and others) are not sent. [`Outgoing::id`] is the message's id for that consumer: the attribute
/// `onceward-id`, or, with an [`own_id`](Outgoing::own_id), the header `onceward-message-id` beside `onceward-id`.
///
/// A message that is larger than SQS or its queue accepts, attributes included, fails with [`ErrorKind::TooLarge`].
///
/// In a FIFO queue the message group is the order key if it is short and plain, otherwise a hash of it, or of the id
/// without an order key. The deduplication id is a hash of id, destination, generation and purpose: the same for each
/// repeat, and new for a redrive, which SQS would otherwise drop within five minutes.
pub struct SqsPublisher {
    client: Client,
    call_timeout: Duration,
    /// The size limit of each queue, and when it was read.
    limits: tokio::sync::Mutex<HashMap<String, (Instant, Option<usize>)>>,
}

impl SqsPublisher {
    /// Opens a publisher for the queues at `endpoint`. It connects with its first batch.
    ///
    /// # Errors
    /// `Config` if the endpoint is invalid.
    ///
    /// # Cancel safety
    /// A dropped call has no effect.
    pub async fn open(endpoint: SqsEndpoint) -> Result<Self, Error> {
        endpoint.check()?;
        Ok(Self::from_client(endpoint.client().await))
    }

    /// Builds a publisher with the caller's client.
    pub fn from_client(client: Client) -> Self {
        Self { client, call_timeout: Duration::from_secs(4), limits: tokio::sync::Mutex::default() }
    }

    /// Sets the timeout of a call, repeats included, after which its outcome is unknown; default 4 s. It should be
    /// shorter than the pipeline's publish timeout.
    #[must_use]
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.call_timeout = limit;
        self
    }

    /// Sends entries of one destination. If SQS rejects a whole call because of its content, each message is sent
    /// alone, so that an invalid one fails alone.
    async fn send(&self, url: &str, batch: Vec<SizedEntry>) -> Vec<(usize, Result<(), Error>)> {
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
                        answers.push((item.index, outcome));
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
                        answers.push((item.index, Err(large.unwrap_or_else(|| error.clone()))));
                    }
                }
            }
        }
        answers
    }

    /// Sends one call; an error is that of the call as a whole.
    async fn call(&self, url: &str, batch: &[SizedEntry]) -> Result<Vec<Result<(), Error>>, Error> {
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
            Ok(answer) => answer.map_err(|error| error::classify(operation(), &error))?,
            Err(_) => return Err(error::timeout(operation())),
        };
        let confirmed: std::collections::HashSet<_> =
            answer.successful.iter().map(|entry| entry.id()).collect();
        let failed: HashMap<_, _> = answer.failed.iter().map(|entry| (entry.id(), entry)).collect();
        let outcome = |item: &SizedEntry| {
            let id = item.entry.id();
            if confirmed.contains(id) {
                return Ok(());
            }
            let Some(entry) = failed.get(id) else {
                return Err(Error::new(
                    ErrorKind::Unknown,
                    operation(),
                    "SQS returned no result for this message",
                ));
            };
            let (kind, what) = match entry.sender_fault() {
                true => (ErrorKind::Unsupported, "SQS rejected the message as invalid"),
                false => error::classify_code(entry.code()),
            };
            let source = format!("{}: {}", entry.code(), entry.message().unwrap_or_default());
            Err(Error::new(kind, operation(), what).with_source(source))
        };
        Ok(batch.iter().map(outcome).collect())
    }

    /// The size error of a rejected message, if it exceeds its queue's limit; the limit is read only then.
    async fn too_large(&self, url: &str, bytes: usize) -> Option<Error> {
        let known = self.limits.lock().await.get(url).copied();
        let limit = match known {
            Some((asked, limit)) if asked.elapsed() < LIMIT_AGE => limit,
            _ => {
                let limit = inspect::read_size_limit(&self.client, url).await.ok().flatten();
                self.limits.lock().await.insert(url.to_owned(), (Instant::now(), limit));
                limit
            }
        };
        let limit = limit?;
        (bytes > limit).then(|| too_large_error(url, bytes, limit))
    }
}

/// The error of a message that exceeds the size limit.
fn too_large_error(url: &str, bytes: usize, limit: usize) -> Error {
    let what = format!(
        "the message has {bytes} bytes with its attributes and the queue accepts {limit}; raise MaximumMessageSize of the \
         queue (up to 1 MiB) or send a smaller message"
    );
    Error::new(ErrorKind::TooLarge, format!("send a message to queue {url}"), what)
}

/// An entry with its index in the batch and its size as SQS counts it.
struct SizedEntry {
    index: usize,
    entry: Entry,
    bytes: usize,
}

impl fmt::Debug for SqsPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsPublisher").field("call_timeout", &self.call_timeout).finish_non_exhaustive()
    }
}

#[async_trait]
impl Publisher for SqsPublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        let mut results: Vec<Option<Result<(), Error>>> = batch.iter().map(|_| None).collect();
        let mut by_destination: BTreeMap<&str, Vec<SizedEntry>> = BTreeMap::new();
        for (index, outgoing) in batch.iter().enumerate() {
            match native::to_entry(index, outgoing) {
                Ok((_, bytes)) if bytes > LARGEST_MESSAGE => {
                    results[index] =
                        Some(Err(too_large_error(&outgoing.destination, bytes, LARGEST_MESSAGE)));
                }
                Ok((entry, bytes)) => {
                    let destination = by_destination.entry(&outgoing.destination).or_default();
                    destination.push(SizedEntry { index, entry, bytes });
                }
                Err(error) => results[index] = Some(Err(error)),
            }
        }
        for (url, entries) in by_destination {
            // Calls to a FIFO queue are sequential; it keeps the order of calls, and of entries within a call.
            let at_once = if is_fifo(url) { 1 } else { CALLS };
            let calls: Vec<_> =
                split_into_calls(entries).into_iter().map(|chunk| self.send(url, chunk)).collect();
            let mut answers = stream::iter(calls).buffer_unordered(at_once);
            while let Some(answers) = answers.next().await {
                for (index, result) in answers {
                    results[index] = Some(result);
                }
            }
        }
        let unsent = || Error::new(ErrorKind::Internal, "send a message", "it was not part of any call");
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(unsent()))).collect()
    }
}

/// Divides entries into calls.
fn split_into_calls(entries: Vec<SizedEntry>) -> Vec<Vec<SizedEntry>> {
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
        let entry = |index: usize, bytes: usize| {
            let entry = Entry::builder().id(index.to_string()).message_body("x").build().unwrap();
            SizedEntry { index, entry, bytes }
        };
        let indices = |sizes: &[usize]| -> Vec<Vec<usize>> {
            let entries = sizes.iter().enumerate().map(|(index, size)| entry(index, *size)).collect();
            split_into_calls(entries)
                .iter()
                .map(|chunk| chunk.iter().map(|item| item.index).collect())
                .collect()
        };
        assert_eq!(indices(&[1; 12]), [(0..10).collect::<Vec<_>>(), vec![10, 11]]);
        let half = MAX_BYTES / 2;
        assert_eq!(indices(&[half, half, 1, MAX_BYTES, half]), [vec![0, 1], vec![2], vec![3], vec![4]]);
    }
}
