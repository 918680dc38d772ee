//! Runs effects: consumes deliveries and processes the partitions concurrently. [`KafkaEffects`].

use std::sync::Arc;
use std::time::Duration;

use onceward::adapter::{Consumer, Delivery, FlowControl};
use onceward::store::PositionStore;
use onceward::{Error, ErrorKind, Scope, TxHandler};
use onceward_kafka::{KafkaConsumer, KafkaPublisher};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::effects::config::EffectsConfig;
use crate::effects::keys::{EffectKeys, KeyMarker};
use crate::effects::owned_partitions::OwnedPartitions;
use crate::effects::partition_queues::{MAX_DELIVERIES, PartitionQueues};
use crate::effects::partition_worker::{PartitionWorker, RecordOutcome};
use crate::effects::purge::KeyPurge;
use crate::effects::settler::Settler;
use crate::effects::summary::EffectsSummary;

/// The delay before a retry after a failed receive.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Consumes topics and commits the effect of each record together with its position, in one transaction of the database:
/// *effectively-once per record*, whichever process is killed.
///
/// When a partition is assigned, this process takes ownership of it in the database, under a new epoch, and continues at the
/// position in the database, whatever offset the group has committed. Every transaction ends with a statement that requires the
/// owner's epoch, so that a process that was paused while another one took over commits nothing. The records of a partition are
/// processed in order, those that wait in one transaction, and one that fails in a transaction of its own; partitions are processed
/// concurrently.
///
/// Without [`keys`](EffectsConfig::keys) a record that a producer has sent twice is two records. With them it is one, on whichever
/// partitions its copies are: its key is completed in the same transaction. A record that failed permanently completes no key: a
/// record moved back from the dead-letter topic runs again, and so does a copy.
///
/// Effects outside the database may happen again: a handler runs once more after its transaction was rolled back, because of another
/// record, a shutdown or a lost partition. It also does after an unanswered commit, in a transaction that the position in the database
/// lets commit only if the earlier one did not.
#[derive(Debug)]
pub struct KafkaEffects {
    config: EffectsConfig,
}

impl KafkaEffects {
    /// Checks the configuration. Connects nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the problem and the fix.
    pub fn new(mut config: EffectsConfig) -> Result<Self, Error> {
        config.source.topics.retry_topics.clear();
        config.source.check()?;
        config.keys.as_ref().map_or(Ok(()), EffectKeys::check)?;
        Ok(Self { config })
    }

    /// Runs until `shutdown` fires, and then waits for running handlers.
    ///
    /// # Errors
    /// An error that prevents starting or continuing, such as a log that ends before processed records because it was truncated.
    ///
    /// # Cancel safety
    /// A dropped run commits nothing more. The next run processes uncommitted records.
    pub async fn run<S: PositionStore, H: TxHandler<S>>(
        self,
        scope: Scope,
        store: Arc<S>,
        handler: H,
        shutdown: CancellationToken,
    ) -> Result<EffectsSummary, Error> {
        let Self { config } = self;
        config.keys.as_ref().map_or(Ok(()), |keys| keys.check_scope(&scope))?;
        let publisher = KafkaPublisher::open(config.source.connection.clone())?;
        let owned = Arc::new(OwnedPartitions::new(store, scope, &config.source.group));
        let consumer = KafkaConsumer::open_with_positions(config.source.clone(), owned.clone()).await?;
        let marker = config.keys.clone().map(KeyMarker::new);
        let _purge = marker.is_some().then(|| KeyPurge::start(Arc::clone(&owned.store)));
        let stopping = shutdown.child_token();
        let worker = PartitionWorker { owned, handler, config, marker, publisher, shutdown: stopping };
        let mut run = EffectsRun::new(consumer, worker);
        let ended = run.process_until(&shutdown).await;
        run.finish(ended).await
    }
}

/// The deliveries of a part, with their outcomes.
type ProcessedPart = (Vec<RecordOutcome>, Vec<Delivery>);

/// A run in progress.
struct EffectsRun<S: PositionStore, H> {
    consumer: KafkaConsumer,
    flow: Option<Arc<dyn FlowControl>>,
    worker: Arc<PartitionWorker<S, H>>,
    settler: Settler,
    queues: PartitionQueues,
    in_flight: JoinSet<ProcessedPart>,
    /// Nothing is received before this time, after a failure.
    receive_at: Instant,
}

impl<S: PositionStore, H: TxHandler<S>> EffectsRun<S, H> {
    fn new(consumer: KafkaConsumer, worker: PartitionWorker<S, H>) -> Self {
        let settler = Settler::new(consumer.acker());
        Self {
            flow: consumer.flow(),
            consumer,
            worker: Arc::new(worker),
            settler,
            queues: PartitionQueues::default(),
            in_flight: JoinSet::new(),
            receive_at: Instant::now(),
        }
    }

    /// Receives and processes deliveries until `shutdown` fires, or the consumer ends.
    async fn process_until(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        let max_bytes = self.worker.config.source.topics.buffer_bytes;
        loop {
            self.start_parts().await;
            self.apply_flow_changes();
            let (consumer, receive_at) = (&mut self.consumer, self.receive_at);
            let flow_changes_at = self.queues.flow_changes_at();
            let received = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                Some(ended) = self.in_flight.join_next() => {
                    let (outcomes, part) = ended.map_err(part_panicked)?;
                    self.settler.settle_part(&mut self.queues, outcomes, part).await;
                    continue;
                }
                received = async { tokio::time::sleep_until(receive_at).await; consumer.receive().await },
                    if self.queues.have_room(MAX_DELIVERIES, max_bytes) => received,
                () = tokio::time::sleep_until(flow_changes_at.unwrap_or(receive_at)), if flow_changes_at.is_some() => continue,
            };
            match received {
                Ok(Some(deliveries)) => self.settler.give_back(self.queues.push(deliveries)).await,
                Ok(None) => return Ok(()),
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "receiving failed; retrying");
                    self.receive_at = Instant::now() + RETRY_DELAY;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts the next part of each partition without a part in flight.
    async fn start_parts(&mut self) {
        for part in self.queues.take_parts(Instant::now()) {
            let is_leaving = |delivery: &Delivery| self.consumer.is_leaving(delivery.tag.epoch);
            if part.first().is_some_and(is_leaving) {
                // The rebalance waits for parts in flight, and should not wait for more.
                let outcomes = vec![RecordOutcome::Abandoned; part.len()];
                self.settler.settle_part(&mut self.queues, outcomes, part).await;
            } else {
                self.in_flight.spawn(process_part(Arc::clone(&self.worker), part));
            }
        }
    }

    fn apply_flow_changes(&mut self) {
        for (epoch, pause) in self.queues.flow_changes(Instant::now()) {
            match &self.flow {
                Some(flow) if pause => flow.pause(epoch),
                Some(flow) => flow.resume(epoch),
                None => {}
            }
        }
    }

    /// Waits for parts in flight and closes the consumer. Waiting records are left to the partitions' next owners.
    async fn finish(mut self, ended: Result<(), Error>) -> Result<EffectsSummary, Error> {
        self.worker.shutdown.cancel();
        while let Some(processed) = self.in_flight.join_next().await {
            if let Ok((outcomes, part)) = processed {
                self.settler.settle_part(&mut self.queues, outcomes, part).await;
            }
        }
        let closed = self.consumer.close().await;
        if ended.is_err()
            && let Err(error) = &closed
        {
            tracing::warn!(%error, "closing the consumer failed");
        }
        ended.and(closed).map(|()| self.settler.summary)
    }
}

/// Returns the error of a part that panicked outside the handler, or was dropped with the runtime: later parts would skip its
/// positions.
fn part_panicked(error: JoinError) -> Error {
    let what = "processing ended in the middle of a batch; nothing of it is committed. Start again";
    Error::new(ErrorKind::Internal, "process records", what).with_source(error)
}

/// Processes a part. Returns the outcome of each delivery.
async fn process_part<S: PositionStore, H: TxHandler<S>>(
    worker: Arc<PartitionWorker<S, H>>,
    part: Vec<Delivery>,
) -> ProcessedPart {
    (worker.process(&part).await, part)
}
