//! Receives from SQS and hands batches over: one of several [`Poller`]s.

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
use crate::config::QueueConfig;
use crate::error;
use crate::trouble::{Trouble, pause};

/// The most messages of one receive, by SQS's rules.
const BATCH: i32 = 10;
/// What a receive may take beyond its wait.
const GRACE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Messages of one receive, with their numbers.
pub(crate) type Batch = Vec<(u64, Message)>;

/// One receive at a time. Those above the wanted number wait; at least two go on, so that one that hangs stops nothing.
pub(crate) struct Poller {
    pub(crate) index: usize,
    pub(crate) client: Client,
    pub(crate) queue: Arc<QueueConfig>,
    pub(crate) acker: SqsAcker,
    pub(crate) wanted: Arc<watch::Sender<usize>>,
    pub(crate) trouble: Arc<Trouble>,
    pub(crate) health: Arc<SourceHealth>,
    pub(crate) batches: mpsc::Sender<Batch>,
    pub(crate) stopping: CancellationToken,
}

impl Poller {
    /// Receives until the consumer is gone. A receive that is under way then comes to its end, since SQS may be answering
    /// it, and what it brings is given back.
    pub(crate) async fn run(self) {
        let mut wanted = self.wanted.subscribe();
        let (mut failures, mut attempt) = (0, Attempt::new());
        loop {
            // Room first: what is taken from SQS can be handed over.
            let room = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                room = async {
                    wanted.wait_for(|wanted| *wanted > self.index).await.ok()?;
                    self.batches.reserve().await.ok()
                } => room,
            };
            let Some(room) = room else { return };
            let asked = Instant::now();
            match self.receive(&attempt).await {
                Ok(messages) => {
                    (failures, attempt) = (0, Attempt::new());
                    self.trouble.over();
                    let full = messages.len() >= BATCH as usize;
                    let empty = messages.is_empty();
                    let numbered = messages.into_iter().filter_map(|mut message| {
                        let (id, handle) = (message.message_id.clone()?, message.receipt_handle.take()?);
                        Some((self.acker.held().add(&id, handle, asked), message))
                    });
                    let batch: Batch = numbered.collect();
                    if self.stopping.is_cancelled() {
                        self.acker.release(batch.iter().map(|(number, _)| *number)).await;
                        return;
                    }
                    if !batch.is_empty() {
                        self.health.received();
                        room.send(batch);
                    }
                    self.adapt(full, empty);
                    // SQS may answer at once in spite of the wait: as long as a queue's in-flight limit is reached, say.
                    if empty && asked.elapsed() < FIRST_PAUSE {
                        self.sleep(FIRST_PAUSE).await;
                    }
                }
                Err(error) => {
                    self.trouble.failed(&error);
                    self.sleep(pause(failures)).await;
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
            let before = std::mem::replace(wanted, adapted(*wanted, most, full, empty));
            *wanted != before
        });
    }

    async fn receive(&self, attempt: &Attempt) -> Result<Vec<Message>, Error> {
        let queue = &*self.queue;
        let operation = || format!("receive from queue {}", queue.url);
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
            .map_err(|_| error::timeout(operation()))?
            .map_err(|error| error::sdk(operation(), &error))?;
        Ok(answer.messages.unwrap_or_default())
    }
}

/// Names a receive from a FIFO queue: one that is repeated under its name, since the answer did not come, brings the same
/// messages at once. Otherwise their groups would stand still until they are visible again.
struct Attempt {
    id: String,
    repeats: u32,
}

/// An answer that is lost more often, or a name that SQS does not take any more, is left to the visibility.
const REPEATS: u32 = 3;

impl Attempt {
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

/// One more after a full batch, one fewer after none; at least two, for one may hang.
fn adapted(wanted: usize, most: usize, full: bool, empty: bool) -> usize {
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
    fn full_batches_bring_more_receives_and_empty_ones_fewer_within_limits() {
        let after = |most: usize, batches: &[usize]| {
            batches.iter().fold(most.min(2), |wanted, count| adapted(wanted, most, *count == 10, *count == 0))
        };
        assert_eq!(after(8, &[10, 10, 10]), 5);
        assert_eq!(after(8, &[10; 20]), 8);
        assert_eq!(after(8, &[10, 10, 5, 5]), 4);
        assert_eq!(after(8, &[10, 10, 0, 0, 0, 0]), 2);
        assert_eq!(after(1, &[10, 0, 0]), 1);
    }
}
