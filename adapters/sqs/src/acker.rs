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
use crate::trouble::Trouble;

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
    held: Held,
    deletes: Trouble,
    changes: Trouble,
    queue: QueueConfig,
}

/// What is asked of SQS for one delivery.
#[derive(Clone, Copy)]
enum Ask {
    Delete,
    Visibility(Duration),
    Extend,
}

type Answer = Result<Settled, Error>;

/// An entry of a call: the delivery, what is asked for it, and the handle that it takes.
struct Entry {
    number: u64,
    ask: Ask,
    /// The visibility; nothing to a delete.
    after: Duration,
    handle: String,
}

impl SqsAcker {
    pub(crate) fn new(client: Client, queue: QueueConfig) -> Self {
        let deletes = Trouble::new(&queue.url, "deleting messages", None);
        let changes = Trouble::new(&queue.url, "changing the visibility of messages", None);
        Self(Arc::new(Inner { client, held: Held::default(), deletes, changes, queue }))
    }

    pub(crate) fn held(&self) -> &Held {
        &self.0.held
    }

    /// Gives everything back that is not settled, for as long as one call may take: what is left then comes again after its
    /// visibility.
    pub(crate) async fn release_all(&self) {
        let limit = self.0.queue.call_timeout;
        let released = tokio::time::timeout(limit, self.release(self.held().all().into_iter())).await;
        let left = self.held().len();
        if left > 0 {
            tracing::warn!(
                queue = self.0.queue.url,
                left,
                in_time = released.is_ok(),
                "messages could not be given back; SQS delivers them again after their visibility"
            );
        }
    }

    /// Gives deliveries back.
    pub(crate) async fn release(&self, numbers: impl Iterator<Item = u64>) {
        self.ask_all(numbers.map(|number| (number, Ask::Visibility(Duration::ZERO))), true).await;
    }

    /// Keeps what is buffered alive.
    pub(crate) async fn keep_buffered(&self) {
        let due = self.held().due(Instant::now(), self.0.queue.visibility / 3);
        if !due.is_empty() {
            self.extend_all(due.into_iter()).await;
        }
    }

    async fn extend_all(&self, numbers: impl Iterator<Item = u64>) -> HashMap<u64, Answer> {
        self.ask_all(numbers.map(|number| (number, Ask::Extend)), false).await
    }

    /// Asks, ten to a call. `last`: the deliveries are not ours after a success. One whose handle settles nothing any more
    /// is answered `TooLate` and forgotten.
    async fn ask_all(&self, asks: impl Iterator<Item = (u64, Ask)>, last: bool) -> HashMap<u64, Answer> {
        let sent = Instant::now();
        // A call is of one kind.
        let (deletes, changes): (Vec<_>, Vec<_>) = asks.partition(|(_, ask)| matches!(ask, Ask::Delete));
        let calls: Vec<_> = deletes
            .chunks(BATCH)
            .chain(changes.chunks(BATCH))
            .map(|chunk| self.call(chunk.to_vec()))
            .collect();
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

    /// One call of at most ten entries, which are all of one kind. Entries that SQS reports as failed by its own fault are
    /// asked for again, with the handle that is the newest by then, as long as the time of a call lasts.
    async fn call(&self, open: Vec<(u64, Ask)>) -> Vec<(u64, Answer)> {
        let is_delete = matches!(open.first(), Some((_, Ask::Delete)));
        let trouble = if is_delete { &self.0.deletes } else { &self.0.changes };
        // A heartbeat is never left out: it is rare, and what it keeps would be lost.
        if is_delete && let Some(error) = trouble.too_early() {
            return open.into_iter().map(|(number, _)| (number, Err(error.clone()))).collect();
        }
        let answers = self.call_now(open).await;
        let failed = answers.iter().find_map(|(_, answer)| answer.as_ref().err());
        match failed {
            None => trouble.over(),
            Some(error) if answers.iter().all(|(_, answer)| answer.is_err()) => trouble.failed(error),
            // Some of it is done; the others are repeated by the pipeline.
            Some(_) => {}
        }
        answers
    }

    /// As [`call`](Self::call), whatever failed before.
    async fn call_now(&self, mut open: Vec<(u64, Ask)>) -> Vec<(u64, Answer)> {
        let limit = self.limit(open.first().map(|(_, ask)| *ask));
        let deadline = Instant::now() + limit;
        let mut answers = Vec::with_capacity(open.len());
        for tries in 1.. {
            let entries: Vec<_> = open
                .drain(..)
                .filter_map(|(number, ask)| {
                    let entry = self.entry(number, ask);
                    if entry.is_none() {
                        answers.push((number, Ok(Settled::TooLate)));
                    }
                    entry
                })
                .collect();
            if entries.is_empty() {
                break;
            }
            let asked: Vec<_> = entries.iter().map(|entry| (entry.number, entry.ask)).collect();
            let sent =
                tokio::time::timeout_at(deadline, self.send(entries, limit)).await.unwrap_or_else(|_| {
                    Err(error::timeout(format!("settle messages of queue {}", self.0.queue.url)))
                });
            let mut failed: HashMap<_, _> = match sent {
                Ok(failed) => failed.into_iter().map(|entry| (entry.id().to_owned(), entry)).collect(),
                Err(error) => {
                    answers.extend(asked.into_iter().map(|(number, _)| (number, Err(error.clone()))));
                    break;
                }
            };
            let pause = pause(tries);
            let may_repeat = tries < TRIES && Instant::now() + pause < deadline;
            for (number, ask) in asked {
                match failed.remove(&number.to_string()) {
                    None => answers.push((number, Ok(Settled::Done))),
                    Some(entry) if error::is_gone(entry.code(), entry.message()) => {
                        answers.push((number, Ok(Settled::TooLate)))
                    }
                    Some(entry) if may_repeat && !entry.sender_fault() => open.push((number, ask)),
                    Some(entry) => answers.push((number, Err(self.refused(&entry)))),
                }
            }
            if open.is_empty() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        answers
    }

    /// How long a call may take. One that keeps messages invisible, and hangs, has to leave time for another before they are
    /// visible.
    fn limit(&self, ask: Option<Ask>) -> Duration {
        let queue = &self.0.queue;
        match ask {
            Some(Ask::Visibility(_) | Ask::Extend) => queue.call_timeout.min(queue.visibility / 2),
            _ => queue.call_timeout,
        }
    }

    /// The handle for what is asked; `None` if none settles it any more.
    fn entry(&self, number: u64, ask: Ask) -> Option<Entry> {
        match ask {
            Ask::Delete => {
                let handle = self.held().newest_handle(number)?;
                Some(Entry { number, ask, after: Duration::ZERO, handle })
            }
            Ask::Visibility(after) => {
                let (handle, most) = self.held().own_handle(number, Instant::now())?;
                Some(Entry { number, ask, after: after.min(most), handle })
            }
            Ask::Extend => {
                let (handle, most) = self.held().extending_handle(number, Instant::now())?;
                Some(Entry { number, ask, after: self.0.queue.visibility.min(most), handle })
            }
        }
    }

    fn refused(&self, entry: &BatchResultErrorEntry) -> Error {
        let (kind, what) = error::coded(entry.code());
        let operation = format!("settle a message of queue {}", self.0.queue.url);
        let source = format!("{}: {}", entry.code(), entry.message().unwrap_or_default());
        Error::new(kind, operation, what).with_source(source)
    }

    async fn send(&self, entries: Vec<Entry>, limit: Duration) -> Result<Vec<BatchResultErrorEntry>, Error> {
        let queue = &self.0.queue;
        let made = |error| error::config("settle messages", format!("an entry is incomplete: {error}"));
        let (mut deletes, mut changes) = (Vec::new(), Vec::new());
        for Entry { number, ask, after, handle } in entries {
            let id = number.to_string();
            match ask {
                Ask::Delete => {
                    deletes.push(Delete::builder().id(id).receipt_handle(handle).build().map_err(made)?);
                }
                Ask::Visibility(_) | Ask::Extend => {
                    let change =
                        Change::builder().id(id).receipt_handle(handle).visibility_timeout(seconds(after));
                    changes.push(change.build().map_err(made)?);
                }
            }
        }
        // A user's client may have no limits of its own; half of ours leaves time for a second attempt.
        let limits = TimeoutConfig::builder().operation_attempt_timeout(limit / 2).build();
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

/// How often an entry is asked for in one call of ours.
const TRIES: u32 = 3;

/// 25 to 50 ms, doubled for each further try.
fn pause(tries: u32) -> Duration {
    Duration::from_millis(25 << tries.min(4)).mul_f64(0.5 + fastrand::f64() / 2.0)
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
        let asks: HashMap<_, _> = batch
            .iter()
            .map(|(tag, settlement)| {
                let ask = match settlement {
                    Settlement::Ack => Ask::Delete,
                    Settlement::Retry { after } => Ask::Visibility(*after),
                    // SQS refuses by its redrive policy, which counts receives: the message comes until that moves it away,
                    // and without a policy for as long as it is kept, so not at once.
                    Settlement::Reject => Ask::Visibility(self.0.queue.visibility),
                    _ => Ask::Visibility(Duration::ZERO),
                };
                (tag.number, ask)
            })
            .collect();
        let mut answers = self.ask_all(asks.into_iter(), true).await;
        batch.iter().map(|(tag, _)| answers.remove(&tag.number).unwrap_or(Ok(Settled::TooLate))).collect()
    }

    async fn extend(&self, tags: &[Tag]) -> Vec<Answer> {
        let mut answers = self.extend_all(tags.iter().map(|tag| tag.number)).await;
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
