//! Delivers the messages of a queue: [`SqsConsumer`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use onceward::telemetry::SourceHealth;
use onceward::{Acker, Capabilities, Consumer, Delivery, Error, ErrorKind, Tag};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::acker::SqsAcker;
use crate::config::{QueueConfig, SqsConfig};
use crate::facts::QueueFacts;
use crate::message;
use crate::poller::{Batch, Poller};
use crate::trouble::Trouble;

/// The most deliveries of one batch.
const BATCH: usize = 256;
/// How often it is looked how many messages wait.
const LAG_INTERVAL: Duration = Duration::from_secs(10);

/// The messages of a queue.
///
/// Several receives wait at a time, as many as find full batches. What they bring is kept invisible from then on, by this
/// consumer until it is delivered and by the pipeline until it is settled, 12 hours at most: SQS's limit.
///
/// Of a FIFO queue, the messages of a group come in order. A message that fails is tried again in place, while the rest of its
/// group waits invisibly; this needs a pipeline ordered by the broker's key, and takes no receives from the redrive policy.
///
/// Its sequence number is its position: the number's low 64 bits are the offset, those above them the partition, and the
/// queue's URL with the group is what they count in.
///
/// It comes back by itself after errors, throttling, expired credentials, and receives that never answer.
pub struct SqsConsumer {
    client: Client,
    queue: Arc<QueueConfig>,
    facts: QueueFacts,
    origin: Arc<str>,
    acker: SqsAcker,
    health: Arc<SourceHealth>,
    batches: mpsc::Receiver<Batch>,
    /// Ends the receives and the heartbeat of what is buffered.
    stopping: CancellationToken,
}

impl SqsConsumer {
    /// Reads the queue's attributes and starts to receive.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if values cannot be used or there is no such queue, [`ErrorKind::Unavailable`],
    /// [`ErrorKind::Throttled`] or [`ErrorKind::Timeout`] if SQS does not answer.
    pub async fn open(config: SqsConfig) -> Result<Self, Error> {
        config.check()?;
        Self::from_client(config.endpoint.client().await, config.queue).await
    }

    /// As [`open`](Self::open), with the caller's client: its credentials, region, retries and HTTP stack.
    ///
    /// Without the right `sqs:GetQueueAttributes` it works, but says nothing of retention and redrive policy.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn from_client(client: Client, queue: QueueConfig) -> Result<Self, Error> {
        queue.check()?;
        let facts = match QueueFacts::read(&client, &queue.url).await {
            Err(error) if error.kind() == ErrorKind::Denied => {
                tracing::warn!(?error, "retention and redrive policy are unknown and cannot be checked");
                QueueFacts { fifo: queue.is_fifo(), ..QueueFacts::default() }
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
        health.set_lag(facts.lag());
        let trouble = Arc::new(Trouble::new(&queue.url, "receiving messages", Some(Arc::clone(&health))));
        for index in 0..queue.pollers {
            let poller = Poller {
                index,
                client: client.clone(),
                queue: Arc::clone(&queue),
                acker: acker.clone(),
                wanted: Arc::clone(&wanted),
                trouble: Arc::clone(&trouble),
                health: Arc::clone(&health),
                batches: sender.clone(),
                stopping: stopping.clone(),
            };
            tokio::spawn(poller.run());
        }
        tokio::spawn(stopping.clone().run_until_cancelled_owned(keep(acker.clone(), queue.visibility / 6)));
        let watch = watch_lag(client.clone(), Arc::clone(&queue), Arc::clone(&health));
        tokio::spawn(stopping.clone().run_until_cancelled_owned(watch));
        let origin = queue.url.as_str().into();
        Ok(Self { client, queue, facts, origin, acker, health, batches, stopping })
    }

    /// What SQS said of the queue when the consumer was opened.
    pub fn facts(&self) -> &QueueFacts {
        &self.facts
    }

    fn deliver(&self, batch: Batch, deliveries: &mut Vec<Delivery>) {
        for (number, received) in batch {
            if self.acker.held().hand_over(number) {
                let message = message::from(received, Arc::clone(&self.origin), &self.queue);
                deliveries.push(Delivery { message, tag: Tag { epoch: 0, number } });
            }
        }
    }
}

/// Keeps alive what is not delivered yet.
async fn keep(acker: SqsAcker, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        acker.keep_buffered().await;
    }
}

/// Looks every few seconds how many messages wait; never, without the right to look.
async fn watch_lag(client: Client, queue: Arc<QueueConfig>, health: Arc<SourceHealth>) {
    loop {
        tokio::time::sleep(LAG_INTERVAL).await;
        match QueueFacts::read(&client, &queue.url).await {
            Ok(facts) => health.set_lag(facts.lag()),
            Err(error) => {
                health.set_lag(None);
                if error.kind() == ErrorKind::Denied {
                    // The right may be given later on.
                    tokio::time::sleep(LAG_INTERVAL * 10).await;
                }
            }
        }
    }
}

#[async_trait]
impl Consumer for SqsConsumer {
    fn capabilities(&self) -> Capabilities {
        self.facts.capabilities(&self.queue)
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

    /// By SQS's own counts, which lag behind.
    async fn is_idle(&mut self) -> Option<bool> {
        let facts = QueueFacts::read(&self.client, &self.queue.url).await.ok()?;
        let ours = u64::try_from(self.acker.held().len()).unwrap_or(u64::MAX);
        Some(self.batches.is_empty() && facts.visible + facts.delayed == 0 && facts.in_flight <= ours)
    }

    /// A receive that is under way goes on by itself and gives back what it brings; if the process ends before, those
    /// messages come again after their visibility.
    async fn close(&mut self) -> Result<(), Error> {
        self.stopping.cancel();
        self.batches.close();
        self.acker.release_all().await;
        Ok(())
    }
}

impl Drop for SqsConsumer {
    /// As when the process dies, except that what is held is given back if SQS can be reached.
    fn drop(&mut self) {
        self.stopping.cancel();
        let acker = self.acker.clone();
        if acker.held().len() > 0
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { acker.release_all().await });
        }
    }
}
