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
use onceward::Error;
use onceward::adapter::{Acker, Settled, Settlement, Tag};
use tokio::time::Instant;

use crate::config::{LONGEST_VISIBILITY, SqsQueueConfig};
use crate::connection::operation_health::OperationHealth;
use crate::error;
use crate::settle::receipt_handles::ReceiptHandles;

/// The most entries of one call, an SQS limit.
const BATCH: usize = 10;
/// The most concurrent calls.
const CALLS: usize = 16;

/// The acker of an [`SqsConsumer`](crate::SqsConsumer). `Done` means that SQS has confirmed it.
///
/// Settlements do not wait to fill their calls: they accumulate while the pipeline's previous call is in flight.
#[derive(Clone)]
pub(crate) struct SqsAcker(Arc<SqsAckerState>);

struct SqsAckerState {
    client: Client,
    handles: ReceiptHandles,
    deletes: OperationHealth,
    changes: OperationHealth,
    queue: SqsQueueConfig,
}

/// A request to SQS for one delivery.
#[derive(Clone, Copy)]
enum SettleRequest {
    Delete,
    Visibility(Duration),
    Extend,
}

type SettleResult = Result<Settled, Error>;

/// An entry of a call: the delivery, the request, and the receipt handle to use.
struct CallEntry {
    number: u64,
    request: SettleRequest,
    /// The visibility timeout to set; unused by a delete.
    after: Duration,
    handle: String,
}

impl SqsAcker {
    pub(crate) fn new(client: Client, queue: SqsQueueConfig) -> Self {
        let deletes = OperationHealth::new(&queue.url, "deleting messages", None);
        let changes = OperationHealth::new(&queue.url, "changing the visibility of messages", None);
        Self(Arc::new(SqsAckerState { client, handles: ReceiptHandles::default(), deletes, changes, queue }))
    }

    pub(crate) fn handles(&self) -> &ReceiptHandles {
        &self.0.handles
    }

    /// Releases all unsettled deliveries, within the timeout of one call; those left are redelivered after their
    /// visibility timeout.
    pub(crate) async fn release_all(&self) {
        let limit = self.0.queue.call_timeout;
        let released = tokio::time::timeout(limit, self.release(self.handles().all().into_iter())).await;
        let left = self.handles().len();
        if left > 0 {
            tracing::warn!(
                queue = self.0.queue.url,
                left,
                in_time = released.is_ok(),
                "messages not released; SQS redelivers them after their visibility timeout"
            );
        }
    }

    /// Releases deliveries: they are visible again immediately.
    pub(crate) async fn release(&self, numbers: impl Iterator<Item = u64>) {
        self.request_all(numbers.map(|number| (number, SettleRequest::Visibility(Duration::ZERO))), true)
            .await;
    }

    /// Extends the visibility of buffered deliveries that are due.
    pub(crate) async fn extend_due(&self) {
        let due = self.handles().due(Instant::now(), self.0.queue.visibility / 3);
        if !due.is_empty() {
            self.extend_all(due.into_iter()).await;
        }
    }

    async fn extend_all(&self, numbers: impl Iterator<Item = u64>) -> HashMap<u64, SettleResult> {
        self.request_all(numbers.map(|number| (number, SettleRequest::Extend)), false).await
    }

    /// Sends requests, ten to a call. `last`: a success ends the delivery. A delivery whose handle is no longer valid
    /// is answered with `TooLate` and removed.
    async fn request_all(
        &self,
        requests: impl Iterator<Item = (u64, SettleRequest)>,
        last: bool,
    ) -> HashMap<u64, SettleResult> {
        let sent = Instant::now();
        // A call has entries of one kind.
        let (deletes, changes): (Vec<_>, Vec<_>) =
            requests.partition(|(_, request)| matches!(request, SettleRequest::Delete));
        let calls: Vec<_> = deletes
            .chunks(BATCH)
            .chain(changes.chunks(BATCH))
            .map(|chunk| self.call(chunk.to_vec()))
            .collect();
        let answers: Vec<_> = stream::iter(calls).buffer_unordered(CALLS).collect().await;
        let answers: HashMap<_, _> = answers.into_iter().flatten().collect();
        for (number, answer) in &answers {
            match answer {
                Ok(Settled::Done) if !last => self.handles().extended(*number, sent),
                Ok(_) => self.handles().remove(*number),
                Err(_) => {}
            }
        }
        answers
    }

    /// Sends at most ten entries of one kind. Entries that fail through a fault of SQS are repeated with the newest
    /// handle until the call timeout ends.
    async fn call(&self, open: Vec<(u64, SettleRequest)>) -> Vec<(u64, SettleResult)> {
        let is_delete = matches!(open.first(), Some((_, SettleRequest::Delete)));
        let operation = if is_delete { &self.0.deletes } else { &self.0.changes };
        // Extensions are never skipped: they are rare, and the messages would be lost to another worker.
        if is_delete && let Some(error) = operation.too_early() {
            return open.into_iter().map(|(number, _)| (number, Err(error.clone()))).collect();
        }
        let answers = self.call_now(open).await;
        let failed = answers.iter().find_map(|(_, answer)| answer.as_ref().err());
        match failed {
            None => operation.succeeded(),
            Some(error) if answers.iter().all(|(_, answer)| answer.is_err()) => operation.failed(error),
            // Partly successful; the pipeline repeats the others.
            Some(_) => {}
        }
        answers
    }

    /// As [`call`](Self::call), whatever failed before.
    async fn call_now(&self, mut open: Vec<(u64, SettleRequest)>) -> Vec<(u64, SettleResult)> {
        let limit = self.call_timeout(open.first().map(|(_, request)| *request));
        let deadline = Instant::now() + limit;
        let mut answers = Vec::with_capacity(open.len());
        for attempts in 1.. {
            let entries: Vec<_> = open
                .drain(..)
                .filter_map(|(number, request)| {
                    let entry = self.entry(number, request);
                    if entry.is_none() {
                        answers.push((number, Ok(Settled::TooLate)));
                    }
                    entry
                })
                .collect();
            if entries.is_empty() {
                break;
            }
            let requested: Vec<_> = entries.iter().map(|entry| (entry.number, entry.request)).collect();
            let sent =
                tokio::time::timeout_at(deadline, self.send(entries, limit)).await.unwrap_or_else(|_| {
                    Err(error::timeout(format!("settle messages of queue {}", self.0.queue.url)))
                });
            let mut failed: HashMap<_, _> = match sent {
                Ok(failed) => failed.into_iter().map(|entry| (entry.id().to_owned(), entry)).collect(),
                Err(error) => {
                    answers.extend(requested.into_iter().map(|(number, _)| (number, Err(error.clone()))));
                    break;
                }
            };
            let pause = pause(attempts);
            let may_repeat = attempts < ATTEMPTS && Instant::now() + pause < deadline;
            for (number, request) in requested {
                match failed.remove(&number.to_string()) {
                    None => answers.push((number, Ok(Settled::Done))),
                    Some(entry) if error::is_expired_handle(entry.code(), entry.message()) => {
                        answers.push((number, Ok(Settled::TooLate)))
                    }
                    Some(entry) if may_repeat && !entry.sender_fault() => open.push((number, request)),
                    Some(entry) => answers.push((number, Err(self.entry_error(&entry)))),
                }
            }
            if open.is_empty() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        answers
    }

    /// The timeout of a call. A hanging call that extends messages must leave time for another one before they are
    /// visible.
    fn call_timeout(&self, request: Option<SettleRequest>) -> Duration {
        let queue = &self.0.queue;
        match request {
            Some(SettleRequest::Visibility(_) | SettleRequest::Extend) => {
                queue.call_timeout.min(queue.visibility / 2)
            }
            _ => queue.call_timeout,
        }
    }

    /// The entry for a request; `None` if no handle is valid any more.
    fn entry(&self, number: u64, request: SettleRequest) -> Option<CallEntry> {
        match request {
            SettleRequest::Delete => {
                let handle = self.handles().newest_handle(number)?;
                Some(CallEntry { number, request, after: Duration::ZERO, handle })
            }
            SettleRequest::Visibility(after) => {
                let (handle, most) = self.handles().own_handle(number, Instant::now())?;
                Some(CallEntry { number, request, after: after.min(most), handle })
            }
            SettleRequest::Extend => {
                let (handle, most) = self.handles().extending_handle(number, Instant::now())?;
                Some(CallEntry { number, request, after: self.0.queue.visibility.min(most), handle })
            }
        }
    }

    fn entry_error(&self, entry: &BatchResultErrorEntry) -> Error {
        let (kind, what) = error::classify_code(entry.code());
        let operation = format!("settle a message of queue {}", self.0.queue.url);
        let source = format!("{}: {}", entry.code(), entry.message().unwrap_or_default());
        Error::new(kind, operation, what).with_source(source)
    }

    async fn send(
        &self,
        entries: Vec<CallEntry>,
        limit: Duration,
    ) -> Result<Vec<BatchResultErrorEntry>, Error> {
        let queue = &self.0.queue;
        let made = |error| error::config("settle messages", format!("an entry is incomplete: {error}"));
        let (mut deletes, mut changes) = (Vec::new(), Vec::new());
        for CallEntry { number, request, after, handle } in entries {
            let id = number.to_string();
            match request {
                SettleRequest::Delete => {
                    deletes.push(Delete::builder().id(id).receipt_handle(handle).build().map_err(made)?);
                }
                SettleRequest::Visibility(_) | SettleRequest::Extend => {
                    let change =
                        Change::builder().id(id).receipt_handle(handle).visibility_timeout(seconds(after));
                    changes.push(change.build().map_err(made)?);
                }
            }
        }
        // A client of the caller may have no timeouts of its own; half of ours leaves time for a second attempt.
        let limits = TimeoutConfig::builder().operation_attempt_timeout(limit / 2).build();
        let limits = aws_sdk_sqs::config::Builder::new().timeout_config(limits);
        if changes.is_empty() {
            let call = self.0.client.delete_message_batch().queue_url(&queue.url).set_entries(Some(deletes));
            let answer = call.customize().config_override(limits).send().await;
            return answer
                .map(|answer| answer.failed)
                .map_err(|error| error::classify(format!("delete messages of queue {}", queue.url), &error));
        }
        let call =
            self.0.client.change_message_visibility_batch().queue_url(&queue.url).set_entries(Some(changes));
        let answer = call.customize().config_override(limits).send().await;
        answer.map(|answer| answer.failed).map_err(|error| {
            error::classify(format!("change the visibility of messages of queue {}", queue.url), &error)
        })
    }
}

/// The number of attempts per entry within one call.
const ATTEMPTS: u32 = 3;

/// The pause before an attempt: 25 to 50 ms, doubled for each further one.
fn pause(attempts: u32) -> Duration {
    Duration::from_millis(25 << attempts.min(4)).mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Rounds up to whole seconds, as SQS expects them.
fn seconds(duration: Duration) -> i32 {
    let duration = duration.min(LONGEST_VISIBILITY);
    let rounded = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(rounded).unwrap_or(i32::MAX)
}

#[async_trait]
impl Acker for SqsAcker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<SettleResult> {
        let requests: HashMap<_, _> = batch
            .iter()
            .map(|(tag, settlement)| {
                let request = match settlement {
                    Settlement::Ack => SettleRequest::Delete,
                    Settlement::Retry { after } => SettleRequest::Visibility(*after),
                    // SQS rejects messages through its redrive policy, which counts receives: the message is
                    // redelivered until the policy moves it away, and without a policy until its retention ends, so not
                    // immediately.
                    Settlement::Reject => SettleRequest::Visibility(self.0.queue.visibility),
                    _ => SettleRequest::Visibility(Duration::ZERO),
                };
                (tag.number, request)
            })
            .collect();
        let mut answers = self.request_all(requests.into_iter(), true).await;
        batch.iter().map(|(tag, _)| answers.remove(&tag.number).unwrap_or(Ok(Settled::TooLate))).collect()
    }

    async fn extend(&self, tags: &[Tag]) -> Vec<SettleResult> {
        let mut answers = self.extend_all(tags.iter().map(|tag| tag.number)).await;
        tags.iter().map(|tag| answers.remove(&tag.number).unwrap_or(Ok(Settled::TooLate))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_rounded_up_to_whole_seconds() {
        for (millis, expected) in [(0, 0), (1, 1), (1000, 1), (1001, 2)] {
            assert_eq!(seconds(Duration::from_millis(millis)), expected);
        }
        assert_eq!(seconds(Duration::MAX), 43_200);
    }
}
