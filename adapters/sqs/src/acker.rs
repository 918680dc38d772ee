//! Deletes messages and changes their visibility, ten to a call: [`SqsAcker`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry as Change,
    DeleteMessageBatchRequestEntry as Delete,
};
use futures_util::stream::{self, StreamExt};
use onceward::{Acker, Error, Settled, Settlement, Tag};
use tokio::time::Instant;

use crate::config::{LONGEST_VISIBILITY, QueueConfig};
use crate::error;
use crate::held::Held;

/// The most entries of one call, by SQS's rules.
const BATCH: usize = 10;
/// The most calls at a time.
const CALLS: usize = 16;

/// The acker of an [`SqsConsumer`](crate::SqsConsumer). `Done` means that SQS has confirmed it.
///
/// Settlements need no wait to fill their calls: they gather while the pipeline's call before is under way.
#[derive(Clone)]
pub(crate) struct SqsAcker(Arc<Inner>);

struct Inner {
    client: Client,
    queue: QueueConfig,
    held: Held,
}

/// What is asked of SQS for one delivery.
enum Ask {
    Delete(String),
    Visibility(String, Duration),
}

type Answer = Result<Settled, Error>;

impl SqsAcker {
    pub(crate) fn new(client: Client, queue: QueueConfig) -> Self {
        Self(Arc::new(Inner { client, queue, held: Held::default() }))
    }

    pub(crate) fn held(&self) -> &Held {
        &self.0.held
    }

    /// Gives everything back that is not settled.
    pub(crate) async fn release_all(&self) {
        self.release(self.held().all().into_iter()).await;
    }

    /// Gives deliveries back.
    pub(crate) async fn release(&self, numbers: impl Iterator<Item = u64>) {
        let now = Instant::now();
        let asks = numbers.filter_map(|number| {
            let (handle, _) = self.held().own_handle(number, now)?;
            Some((number, Ask::Visibility(handle, Duration::ZERO)))
        });
        self.ask_all(asks.collect(), true).await;
    }

    /// Keeps what is buffered alive.
    pub(crate) async fn keep_buffered(&self) {
        let due = self.held().due(Instant::now(), self.0.queue.visibility / 3);
        if !due.is_empty() {
            self.extend_all(&due).await;
        }
    }

    async fn extend_all(&self, numbers: &[u64]) -> HashMap<u64, Answer> {
        let now = Instant::now();
        let visibility = self.0.queue.visibility;
        let asks = numbers.iter().filter_map(|number| {
            let (handle, most) = self.held().own_handle(*number, now)?;
            Some((*number, Ask::Visibility(handle, visibility.min(most))))
        });
        self.ask_all(asks.collect(), false).await
    }

    /// Asks, ten to a call. `last`: the deliveries are not ours after a success. One that was not asked for, or whose
    /// handle settles nothing any more, has no answer or `TooLate`; either way it is forgotten.
    async fn ask_all(&self, asks: Vec<(u64, Ask)>, last: bool) -> HashMap<u64, Answer> {
        let sent = Instant::now();
        let (deletes, changes): (Vec<_>, Vec<_>) =
            asks.into_iter().partition(|(_, ask)| matches!(ask, Ask::Delete(_)));
        let calls = [deletes, changes]
            .into_iter()
            .flat_map(|asks| {
                let mut asks = asks.into_iter();
                std::iter::from_fn(move || {
                    let chunk: Vec<_> = asks.by_ref().take(BATCH).collect();
                    (!chunk.is_empty()).then_some(chunk)
                })
                .collect::<Vec<_>>()
            })
            .map(|chunk| self.call(chunk));
        let answers: Vec<_> = stream::iter(calls).buffer_unordered(CALLS).collect().await;
        let answers: HashMap<_, _> = answers.into_iter().flatten().collect();
        for (number, answer) in &answers {
            match answer {
                Ok(Settled::Done) if !last => self.held().extended(*number, sent),
                Ok(_) => self.held().remove(*number),
                Err(_) => {}
            }
        }
        answers
    }

    /// One call of at most ten entries, which are all of one kind.
    async fn call(&self, chunk: Vec<(u64, Ask)>) -> Vec<(u64, Answer)> {
        let numbers: Vec<_> = chunk.iter().map(|(number, _)| *number).collect();
        let failed = match tokio::time::timeout(self.0.queue.call_timeout, self.send(chunk)).await {
            Ok(Ok(failed)) => failed,
            Ok(Err(error)) => {
                return numbers.into_iter().map(|number| (number, Err(error.replicate()))).collect();
            }
            Err(_) => {
                let error = error::timeout(format!("settle messages of queue {}", self.0.queue.url));
                return numbers.into_iter().map(|number| (number, Err(error.replicate()))).collect();
            }
        };
        let mut failed: HashMap<_, _> =
            failed.into_iter().map(|entry| (entry.id().to_owned(), entry)).collect();
        let answer = |number: u64| match failed.remove(&number.to_string()) {
            None => Ok(Settled::Done),
            Some(entry) if error::is_gone(entry.code()) => Ok(Settled::TooLate),
            Some(entry) => {
                let (kind, what) = error::coded(entry.code());
                let operation = format!("settle a message of queue {}", self.0.queue.url);
                let source = format!("{}: {}", entry.code(), entry.message().unwrap_or_default());
                Err(Error::new(kind, operation, what).with_source(source))
            }
        };
        let mut answer = answer;
        numbers.into_iter().map(|number| (number, answer(number))).collect()
    }

    async fn send(&self, chunk: Vec<(u64, Ask)>) -> Result<Vec<BatchResultErrorEntry>, Error> {
        let queue = &self.0.queue;
        let made = |error| error::config("settle messages", format!("an entry is incomplete: {error}"));
        let (mut deletes, mut changes) = (Vec::new(), Vec::new());
        for (number, ask) in chunk {
            let id = number.to_string();
            match ask {
                Ask::Delete(handle) => {
                    deletes.push(Delete::builder().id(id).receipt_handle(handle).build().map_err(made)?);
                }
                Ask::Visibility(handle, after) => {
                    let change =
                        Change::builder().id(id).receipt_handle(handle).visibility_timeout(seconds(after));
                    changes.push(change.build().map_err(made)?);
                }
            }
        }
        // A user's client may have no limits of its own; half of ours leaves time for a second attempt.
        let limits = TimeoutConfig::builder().operation_attempt_timeout(queue.call_timeout / 2).build();
        let limits = aws_sdk_sqs::config::Builder::new().timeout_config(limits);
        if changes.is_empty() {
            let call = self.0.client.delete_message_batch().queue_url(&queue.url).set_entries(Some(deletes));
            let answer = call.customize().config_override(limits).send().await;
            return answer
                .map(|answer| answer.failed)
                .map_err(|error| error::sdk(format!("delete messages of queue {}", queue.url), &error));
        }
        let call =
            self.0.client.change_message_visibility_batch().queue_url(&queue.url).set_entries(Some(changes));
        let answer = call.customize().config_override(limits).send().await;
        answer.map(|answer| answer.failed).map_err(|error| {
            error::sdk(format!("change the visibility of messages of queue {}", queue.url), &error)
        })
    }
}

/// Whole seconds, rounded up, as SQS takes them.
fn seconds(duration: Duration) -> i32 {
    let duration = duration.min(LONGEST_VISIBILITY);
    let rounded = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(rounded).unwrap_or(i32::MAX)
}

#[async_trait]
impl Acker for SqsAcker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Answer> {
        let now = Instant::now();
        let ask = |number: u64, settlement: Settlement| {
            let later = |after: Duration| {
                let (handle, most) = self.held().own_handle(number, now)?;
                Some(Ask::Visibility(handle, after.min(most)))
            };
            match settlement {
                Settlement::Ack => self.held().newest_handle(number).map(Ask::Delete),
                Settlement::Retry { after } => later(after),
                // SQS refuses by its redrive policy, which counts receives: the message comes until that moves it away.
                _ => later(Duration::ZERO),
            }
        };
        let asks = batch.iter().filter_map(|(tag, settlement)| {
            let ask = ask(tag.number, *settlement);
            if ask.is_none() {
                self.held().remove(tag.number);
            }
            Some((tag.number, ask?))
        });
        let asks: HashMap<_, _> = asks.collect();
        let mut answers = self.ask_all(asks.into_iter().collect(), true).await;
        batch.iter().map(|(tag, _)| answers.remove(&tag.number).unwrap_or(Ok(Settled::TooLate))).collect()
    }

    async fn extend(&self, tags: &[Tag]) -> Vec<Answer> {
        let numbers: Vec<_> = tags.iter().map(|tag| tag.number).collect();
        let mut answers = self.extend_all(&numbers).await;
        tags.iter().map(|tag| answers.remove(&tag.number).unwrap_or(Ok(Settled::TooLate))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_whole_seconds_and_never_shorter_than_asked() {
        for (millis, expected) in [(0, 0), (1, 1), (1000, 1), (1001, 2)] {
            assert_eq!(seconds(Duration::from_millis(millis)), expected);
        }
        assert_eq!(seconds(Duration::MAX), 43_200);
    }
}
