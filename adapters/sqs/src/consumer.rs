//! Delivers the messages of a queue: [`SqsConsumer`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use onceward::adapter::{Acker, Capabilities, Consumer, Delivery, Tag};
use onceward::telemetry::SourceHealth;
use onceward::{Error, ErrorKind};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::acker::SqsAcker;
use crate::config::{SqsConfig, SqsQueueConfig};
use crate::connection::operation_health::OperationHealth;
use crate::inspect::SqsQueueStatus;
use crate::message;
use crate::receive::poller::{Poller, ReceivedBatch};

/// The most deliveries of one batch.
const BATCH: usize = 256;
/// The interval at which the queue length is measured.
const LAG_INTERVAL: Duration = Duration::from_secs(10);

/// Consumes a queue.
///
/// Several receives are in flight at once, as many as return full batches. Received messages are kept invisible, by
/// this consumer until they are delivered and by the pipeline until they are settled; at most 12 hours, the limit of
/// SQS.
///
/// Messages of a FIFO group are delivered in order. A failed message is retried in place while the rest of its group
/// stays invisible; this needs a pipeline with the broker's ordering key, and does not count as a receive for the
/// redrive policy.
///
/// The sequence number of a FIFO message is its position: its low 64 bits are the offset, those above are the
/// partition, within queue and group.
///
/// The consumer recovers by itself from errors, throttling, expired credentials, and receives that never return.
pub struct SqsConsumer {
    client: Client,
    queue: Arc<SqsQueueConfig>,
    status: SqsQueueStatus,
    origin: Arc<str>,
    acker: SqsAcker,
    health: Arc<SourceHealth>,
    batches: mpsc::Receiver<ReceivedBatch>,
    /// Stops the pollers and the extension of buffered messages.
    stopping: CancellationToken,
}

impl SqsConsumer {
    /// Reads the queue's attributes and starts to receive.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if values are invalid or the queue does not exist, [`ErrorKind::Unavailable`],
    /// [`ErrorKind::Throttled`] or [`ErrorKind::Timeout`] if SQS does not respond.
    pub async fn open(config: SqsConfig) -> Result<Self, Error> {
        config.check()?;
        Self::from_client(config.endpoint.client().await, config.queue).await
    }

    /// Starts to receive with the caller's client: its credentials, region, retries and HTTP stack.
    ///
    /// Without the right `sqs:GetQueueAttributes` it works, but retention and redrive policy are unknown.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn from_client(client: Client, queue: SqsQueueConfig) -> Result<Self, Error> {
        queue.check()?;
        let status = match SqsQueueStatus::read(&client, &queue.url).await {
            Err(error) if error.kind() == ErrorKind::Denied => {
                tracing::warn!(
                    ?error,
                    "queue attributes not readable; retention and redrive policy are not checked"
                );
                SqsQueueStatus { fifo: queue.is_fifo(), ..SqsQueueStatus::default() }
            }
            read => read?,
        };
        let acker = SqsAcker::new(client.clone(), queue.clone());
        let (sender, batches) = mpsc::channel(queue.pollers);
        let wanted = Arc::new(watch::Sender::new(queue.pollers.min(2)));
        let stopping = CancellationToken::new();
        let queue = Arc::new(queue);
        let health = Arc::new(SourceHealth::default());
        health.set_up();
        health.set_lag(status.lag());
        let receiving =
            Arc::new(OperationHealth::new(&queue.url, "receiving messages", Some(Arc::clone(&health))));
        for index in 0..queue.pollers {
            let poller = Poller {
                index,
                client: client.clone(),
                queue: Arc::clone(&queue),
                acker: acker.clone(),
                wanted: Arc::clone(&wanted),
                operation: Arc::clone(&receiving),
                health: Arc::clone(&health),
                batches: sender.clone(),
                stopping: stopping.clone(),
            };
            tokio::spawn(poller.run());
        }
        tokio::spawn(
            stopping.clone().run_until_cancelled_owned(extend_buffered(acker.clone(), queue.visibility / 6)),
        );
        let watch = watch_lag(client.clone(), Arc::clone(&queue), Arc::clone(&health));
        tokio::spawn(stopping.clone().run_until_cancelled_owned(watch));
        let origin = queue.url.as_str().into();
        Ok(Self { client, queue, status, origin, acker, health, batches, stopping })
    }

    /// The status of the queue when the consumer was opened.
    pub fn queue_status(&self) -> &SqsQueueStatus {
        &self.status
    }

    fn deliver(&self, batch: ReceivedBatch, deliveries: &mut Vec<Delivery>) {
        for (number, received) in batch {
            if self.acker.handles().mark_delivered(number) {
                let message = message::to_message(received, Arc::clone(&self.origin), &self.queue);
                deliveries.push(Delivery { message, tag: Tag { epoch: 0, number } });
            }
        }
    }
}

/// Extends buffered messages at intervals.
async fn extend_buffered(acker: SqsAcker, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        acker.extend_due().await;
    }
}

/// Measures the queue length at intervals.
async fn watch_lag(client: Client, queue: Arc<SqsQueueConfig>, health: Arc<SourceHealth>) {
    loop {
        tokio::time::sleep(LAG_INTERVAL).await;
        match SqsQueueStatus::read(&client, &queue.url).await {
            Ok(status) => health.set_lag(status.lag()),
            Err(error) => {
                health.set_lag(None);
                if error.kind() == ErrorKind::Denied {
                    // The right may be granted later.
                    tokio::time::sleep(LAG_INTERVAL * 10).await;
                }
            }
        }
    }
}

#[async_trait]
impl Consumer for SqsConsumer {
    fn capabilities(&self) -> Capabilities {
        self.status.capabilities(&self.queue)
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(self.acker.clone())
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        let mut deliveries = Vec::new();
        while deliveries.is_empty() {
            let Some(batch) = self.batches.recv().await else {
                let operation = format!("receive from queue {}", self.queue.url);
                return Err(Error::new(ErrorKind::Internal, operation, "the consumer was closed"));
            };
            self.deliver(batch, &mut deliveries);
            while deliveries.len() < BATCH
                && let Ok(batch) = self.batches.try_recv()
            {
                self.deliver(batch, &mut deliveries);
            }
        }
        Ok(Some(deliveries))
    }

    fn health(&self) -> Option<Arc<SourceHealth>> {
        Some(Arc::clone(&self.health))
    }

    /// Uses SQS's approximate counts, which lag behind.
    async fn is_idle(&mut self) -> Option<bool> {
        let status = SqsQueueStatus::read(&self.client, &self.queue.url).await.ok()?;
        let ours = u64::try_from(self.acker.handles().len()).unwrap_or(u64::MAX);
        Some(self.batches.is_empty() && status.visible + status.delayed == 0 && status.in_flight <= ours)
    }

    /// A receive in flight completes and releases its messages; if the process ends first, they are redelivered after
    /// their visibility timeout.
    async fn close(&mut self) -> Result<(), Error> {
        self.stopping.cancel();
        self.batches.close();
        self.acker.release_all().await;
        Ok(())
    }
}

impl fmt::Debug for SqsConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsConsumer").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Drop for SqsConsumer {
    /// Behaves like a crash of the process, except that held messages are released if SQS can be reached.
    fn drop(&mut self) {
        self.stopping.cancel();
        let acker = self.acker.clone();
        if acker.handles().len() > 0
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { acker.release_all().await });
        }
    }
}
