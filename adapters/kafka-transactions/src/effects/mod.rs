//! Commits effects of records in a database, each record once: [`KafkaEffects`].

mod keys;
mod owned_partitions;
mod partition_queues;
mod partition_worker;

use std::sync::Arc;
use std::time::Duration;

use onceward::retry::RetryPolicy;
use onceward::store::PositionStore;
use onceward::{Acker, Consumer, Delivery, Error, ErrorKind, Scope, SettleQueue, Settlement, TxHandler};
use onceward_kafka::{KafkaConfig, KafkaConsumer, KafkaPublisher};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use keys::KeyMarker;
use owned_partitions::OwnedPartitions;
use partition_queues::PartitionQueues;
use partition_worker::{PartitionWorker, RecordOutcome};

pub use keys::EffectKeys;

/// The delay before a retry after a failed receive.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// The number of expired keys removed in one request.
const PURGE_BATCH: u32 = 1000;
/// The most deliveries that wait or are in flight. The client delivers thousands of records of one partition before the next
/// one: with a lower limit partitions would wait for each other.
const MAX_DELIVERIES: usize = 20_000;

/// The configuration of a [`KafkaEffects`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EffectsConfig {
    /// The cluster, the group and the topics. Retry topics are not used: order is preserved.
    pub source: KafkaConfig,
    /// The timeout of one run of the handler; default 30 s.
    pub handler_timeout: Duration,
    /// How often and when a failed record is retried, in its place. Attempts are counted in this process.
    pub retry: RetryPolicy,
    /// The topic for records that failed permanently. Without it such a record is retried forever, and its partition waits. A
    /// letter that exceeds the topic's limit is sent without payload: its headers have the position of the record, and
    /// `onceward-oversize-bytes` its size.
    pub dead_letters: Option<String>,
    /// With keys, records that a producer has sent twice have one effect as well. `None` to deduplicate by position only.
    pub keys: Option<EffectKeys>,
}

impl EffectsConfig {
    /// Processes the records of `source`, with the defaults.
    pub fn new(source: KafkaConfig) -> Self {
        let handler_timeout = Duration::from_secs(30);
        Self { source, handler_timeout, retry: RetryPolicy::default(), dead_letters: None, keys: None }
    }
}

/// The counts of a run of a [`KafkaEffects`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EffectsSummary {
    /// Records whose effect was committed.
    pub records: u64,
    /// Records whose effect was committed before.
    pub known: u64,
    /// Records without an effect, because a record with the same key has it.
    pub copies: u64,
    /// Records without a key, skipped by policy.
    pub rejected: u64,
    /// Records sent to the dead-letter topic instead.
    pub dead_lettered: u64,
}

/// Consumes topics and commits the effect of each record together with its position, in one transaction of the database:
/// *effectively-once per record*, whichever process is killed.
///
/// When a partition is assigned, this process takes ownership of it in the database, under a new epoch, and continues at the
/// position in the database, whatever offset the group has committed. Every transaction ends with a statement that requires the
/// owner's epoch, so that a process that was paused while another one took over commits nothing. The records of a partition are
/// processed in order, those that wait in one transaction, or one by one if that fails; partitions are processed concurrently.
///
/// Without [`keys`](EffectsConfig::keys) a record that a producer has sent twice is two records. With them it is one, on whichever
/// partitions its copies are: its key is completed in the same transaction. A record that failed permanently completes no key: a
/// record moved back from the dead-letter topic runs again, and so does a copy.
///
/// Effects outside the database may happen again. After an unanswered commit the position in the database decides whether the
/// handler runs again.
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
        let mut consumer = KafkaConsumer::open_with_positions(config.source.clone(), owned.clone()).await?;
        let stopping = shutdown.child_token();
        let marker = config.keys.clone().map(KeyMarker::new);
        let worker =
            PartitionWorker { owned, handler, config, marker, publisher, shutdown: stopping.clone() };
        let worker = Arc::new(worker);
        let mut settler =
            Settler { acker: consumer.acker(), queue: consumer.settle_queue(), summary: Default::default() };
        let (mut queues, mut in_flight) = (PartitionQueues::default(), JoinSet::new());
        let bytes = worker.config.source.topics.buffer_bytes;
        let flow = consumer.flow();
        let _purge = worker.marker.is_some().then(|| KeyPurge::start(Arc::clone(&worker.owned.store)));
        let mut again_at = Instant::now();
        let ended = loop {
            for part in queues.take_parts() {
                let is_leaving = |delivery: &Delivery| consumer.is_leaving(delivery.receipt.tag().epoch);
                if part.first().is_some_and(is_leaving) {
                    // The rebalance waits for parts in flight, and should not wait for more.
                    settler.settle_part(&mut queues, vec![RecordOutcome::Abandoned; part.len()], part).await;
                } else {
                    in_flight.spawn(process_part(Arc::clone(&worker), part));
                }
            }
            for (epoch, pause) in queues.flow_changes() {
                match &flow {
                    Some(flow) if pause => flow.pause(epoch),
                    Some(flow) => flow.resume(epoch),
                    None => {}
                }
            }
            let received = tokio::select! {
                biased;
                () = shutdown.cancelled() => break Ok(()),
                Some(ended) = in_flight.join_next() => match ended {
                    Ok((ends, part)) => {
                        settler.settle_part(&mut queues, ends, part).await;
                        continue;
                    }
                    Err(error) => break Err(part_panicked(error)),
                },
                received = async { tokio::time::sleep_until(again_at).await; consumer.receive().await },
                    if queues.have_room(MAX_DELIVERIES, bytes) => received,
            };
            match received {
                Ok(Some(deliveries)) => settler.give_back(queues.push(deliveries)).await,
                Ok(None) => break Ok(()),
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "receiving failed; retrying");
                    again_at = Instant::now() + RETRY_DELAY;
                }
                Err(error) => break Err(error),
            }
        };
        stopping.cancel();
        // Parts in flight end; waiting records are left to the partition's next owner.
        while let Some(ended) = in_flight.join_next().await {
            if let Ok((ends, part)) = ended {
                settler.settle_part(&mut queues, ends, part).await;
            }
        }
        let closed = consumer.close().await;
        if ended.is_err()
            && let Err(error) = &closed
        {
            tracing::warn!(%error, "closing the consumer failed");
        }
        ended.and(closed).map(|()| settler.summary)
    }
}

/// Returns the error of a part that panicked outside the handler, or was dropped with the runtime: later parts would skip its
/// positions.
fn part_panicked(error: JoinError) -> Error {
    let what = "processing ended in the middle of a batch; nothing of it is committed. Start again";
    Error::new(ErrorKind::Internal, "process records", what).with_source(error)
}

/// Removes expired keys until it is dropped.
struct KeyPurge(tokio::task::AbortHandle);

impl KeyPurge {
    fn start<S: PositionStore>(store: Arc<S>) -> Self {
        let purge = async move {
            // Stores that expire keys by themselves have no interval.
            let Some(interval) = store.purge_interval() else { return };
            loop {
                tokio::time::sleep(interval).await;
                loop {
                    match store.purge(PURGE_BATCH).await {
                        Ok(removed) if removed >= u64::from(PURGE_BATCH) => {}
                        Ok(_) => break,
                        Err(error) => {
                            tracing::debug!(%error, "removing expired keys failed; retrying later");
                            break;
                        }
                    }
                }
            }
        };
        Self(tokio::spawn(purge).abort_handle())
    }
}

impl Drop for KeyPurge {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Processes a part. Returns the outcome of each delivery.
async fn process_part<S: PositionStore, H: TxHandler<S>>(
    worker: Arc<PartitionWorker<S, H>>,
    part: Vec<Delivery>,
) -> (Vec<RecordOutcome>, Vec<Delivery>) {
    (worker.process(&part).await, part)
}

/// Settles and counts processed deliveries.
struct Settler {
    acker: Arc<dyn Acker>,
    queue: Arc<SettleQueue>,
    summary: EffectsSummary,
}

impl Settler {
    async fn settle_part(
        &mut self,
        queues: &mut PartitionQueues,
        ends: Vec<RecordOutcome>,
        part: Vec<Delivery>,
    ) {
        let epoch = part.first().map(|delivery| delivery.receipt.tag().epoch);
        let mut left = Vec::new();
        for (end, delivery) in ends.into_iter().zip(part) {
            let count = match end {
                RecordOutcome::Committed => &mut self.summary.records,
                RecordOutcome::AlreadyCommitted => &mut self.summary.known,
                RecordOutcome::Duplicate => &mut self.summary.copies,
                RecordOutcome::Rejected => &mut self.summary.rejected,
                RecordOutcome::DeadLettered => &mut self.summary.dead_lettered,
                RecordOutcome::Abandoned => {
                    left.push(delivery);
                    continue;
                }
            };
            *count += 1;
            delivery.receipt.settle(Settlement::Ack);
        }
        if let Some(epoch) = epoch {
            if !left.is_empty() {
                left.extend(queues.close(epoch));
            }
            queues.end_part(epoch);
        }
        self.give_back(left).await;
    }

    /// Gives back deliveries whose partition has another owner.
    async fn give_back(&self, left: Vec<Delivery>) {
        for delivery in left {
            delivery.receipt.settle(Settlement::Retry { after: Duration::from_secs(1) });
        }
        // A settlement may be too late: the position is in the database.
        let _ = self.acker.settle(&self.queue.take()).await;
    }
}
