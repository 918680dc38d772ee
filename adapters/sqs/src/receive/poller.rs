//! Receives from SQS and passes batches to the consumer; one of several concurrent [`Poller`]s.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName};
use onceward::Error;
use onceward::telemetry::SourceHealth;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::acker::SqsAcker;
use crate::config::SqsQueueConfig;
use crate::connection::operation_health::{OperationHealth, backoff};
use crate::error;

/// The most messages of one receive, an SQS limit.
const BATCH: i32 = 10;
/// The time a receive may take beyond its wait.
const GRACE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The messages of one receive, with their numbers.
pub(crate) type ReceivedBatch = Vec<(u64, Message)>;

/// One receive after the other. Pollers above the wanted number wait; at least two continue, so that a hanging one
/// stops nothing.
pub(crate) struct Poller {
    pub(crate) index: usize,
    pub(crate) client: Client,
    pub(crate) queue: Arc<SqsQueueConfig>,
    pub(crate) acker: SqsAcker,
    pub(crate) wanted: Arc<watch::Sender<usize>>,
    pub(crate) operation: Arc<OperationHealth>,
    pub(crate) health: Arc<SourceHealth>,
    pub(crate) batches: mpsc::Sender<ReceivedBatch>,
    pub(crate) stopping: CancellationToken,
}

impl Poller {
    /// Receives until the consumer is closed. A receive in flight is then completed, since SQS may be answering it, and
    /// its messages are released.
    pub(crate) async fn run(self) {
        let mut wanted = self.wanted.subscribe();
        let (mut failures, mut attempt) = (0, ReceiveAttempt::new());
        loop {
            // Capacity first: received messages can then be passed on.
            let capacity = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                capacity = async {
                    wanted.wait_for(|wanted| *wanted > self.index).await.ok()?;
                    self.batches.reserve().await.ok()
                } => capacity,
            };
            let Some(capacity) = capacity else { return };
            let asked = Instant::now();
            match self.receive(&attempt).await {
                Ok(messages) => {
                    (failures, attempt) = (0, ReceiveAttempt::new());
                    self.operation.succeeded();
                    let full = messages.len() >= BATCH as usize;
                    let empty = messages.is_empty();
                    let numbered = messages.into_iter().filter_map(|mut message| {
                        let (id, handle) = (message.message_id.clone()?, message.receipt_handle.take()?);
                        Some((self.acker.handles().add(&id, handle, asked), message))
                    });
                    let batch: ReceivedBatch = numbered.collect();
                    if self.stopping.is_cancelled() {
                        self.acker.release(batch.iter().map(|(number, _)| *number)).await;
                        return;
                    }
                    if !batch.is_empty() {
                        self.health.received();
                        capacity.send(batch);
                    }
                    self.adapt(full, empty);
                    // SQS may respond immediately in spite of the wait, as when the in-flight limit of a queue is
                    // reached.
                    if empty && asked.elapsed() < FIRST_PAUSE {
                        self.sleep(FIRST_PAUSE).await;
                    }
                }
                Err(error) => {
                    self.operation.failed(&error);
                    self.sleep(backoff(failures)).await;
                    failures = failures.saturating_add(1);
                    attempt.failed();
                }
            }
        }
    }

    async fn sleep(&self, pause: Duration) {
        tokio::select! {
            () = self.stopping.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    fn adapt(&self, full: bool, empty: bool) {
        let most = self.queue.pollers;
        self.wanted.send_if_modified(|wanted| {
            let before = std::mem::replace(wanted, adapt_wanted(*wanted, most, full, empty));
            *wanted != before
        });
    }

    async fn receive(&self, attempt: &ReceiveAttempt) -> Result<Vec<Message>, Error> {
        let queue = &*self.queue;
        let describe = || format!("receive from queue {}", queue.url);
        let limit = queue.wait + GRACE;
        let limits = TimeoutConfig::builder().operation_attempt_timeout(limit).build();
        let call = self
            .client
            .receive_message()
            .queue_url(&queue.url)
            .max_number_of_messages(BATCH)
            .wait_time_seconds(i32::try_from(queue.wait.as_secs()).unwrap_or(20))
            .visibility_timeout(i32::try_from(queue.visibility.as_secs()).unwrap_or(30))
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All")
            .set_receive_request_attempt_id(queue.is_fifo().then(|| attempt.id.clone()))
            .customize()
            .config_override(aws_sdk_sqs::config::Builder::new().timeout_config(limits));
        let answer = tokio::time::timeout(limit, call.send()).await;
        let answer = answer
            .map_err(|_| error::timeout(describe()))?
            .map_err(|error| error::classify(describe(), &error))?;
        Ok(answer.messages.unwrap_or_default())
    }
}

/// The attempt id of a receive from a FIFO queue: repeated with the same id after a lost response, it returns the same
/// messages immediately. Their groups would otherwise stand still until the messages are visible again.
struct ReceiveAttempt {
    id: String,
    repeats: u32,
}

/// After this many repeats, the messages are left to the visibility timeout.
const REPEATS: u32 = 3;

impl ReceiveAttempt {
    fn new() -> Self {
        Self { id: format!("{:032x}", fastrand::u128(..)), repeats: 0 }
    }

    fn failed(&mut self) {
        self.repeats += 1;
        if self.repeats > REPEATS {
            *self = Self::new();
        }
    }
}

/// One more poller after a full batch, one fewer after an empty one; at least two, since one may hang.
fn adapt_wanted(wanted: usize, most: usize, full: bool, empty: bool) -> usize {
    match (full, empty) {
        (true, _) => (wanted + 1).min(most),
        (_, true) => wanted.saturating_sub(1).max(most.min(2)),
        _ => wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_batches_add_pollers_and_empty_ones_remove_them_within_limits() {
        let after = |most: usize, batches: &[usize]| {
            batches
                .iter()
                .fold(most.min(2), |wanted, count| adapt_wanted(wanted, most, *count == 10, *count == 0))
        };
        assert_eq!(after(8, &[10, 10, 10]), 5);
        assert_eq!(after(8, &[10; 20]), 8);
        assert_eq!(after(8, &[10, 10, 5, 5]), 4);
        assert_eq!(after(8, &[10, 10, 0, 0, 0, 0]), 2);
        assert_eq!(after(1, &[10, 0, 0]), 1);
    }
}
