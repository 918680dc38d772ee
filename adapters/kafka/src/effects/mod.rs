//! Records in, effects in a database, each record once: [`KafkaEffects`].

mod lane;
mod ownership;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use onceward::retry::RetryPolicy;
use onceward::store::PositionStore;
use onceward::{Consumer, Delivery, Error, Scope, Settlement, TxHandler};
use tokio_util::sync::CancellationToken;

use crate::config::KafkaConfig;
use crate::consumer::KafkaConsumer;
use crate::publisher::KafkaPublisher;
use lane::{End, Lane};
use ownership::Owners;

/// Between two tries of a broker that does not answer.
const BREATH: Duration = Duration::from_millis(200);

/// What a [`KafkaEffects`] consumes, and what it does about failures.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EffectsConfig {
    /// The topics and the group, and how to connect. Retry topics are not used: order is kept.
    pub source: KafkaConfig,
    /// How long one run of the handler may take; default 30 s.
    pub handler_timeout: Duration,
    /// How often and when a record is tried again, in its place. Attempts are counted in this process.
    pub retry: RetryPolicy,
    /// The topic for records that failed for good. Without one such a record is tried again for ever, and its partition
    /// waits.
    pub dead_letters: Option<String>,
}

impl EffectsConfig {
    /// Effects of the records of `source`, with the defaults.
    pub fn new(source: KafkaConfig) -> Self {
        let handler_timeout = Duration::from_secs(30);
        Self { source, handler_timeout, retry: RetryPolicy::default(), dead_letters: None }
    }
}

/// What a run of a [`KafkaEffects`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EffectsSummary {
    /// Records whose effect was committed.
    pub records: u64,
    /// Records whose effect was there already.
    pub known: u64,
    /// Records in the dead-letter topic instead.
    pub dead_lettered: u64,
}

/// Consumes topics and commits the effect of each record together with its position, in one transaction of the database:
/// *effectively-once per record*, whatever is killed.
///
/// When a partition is assigned, this process takes it over in the database, under a new epoch, and goes on where the database
/// says, whatever the broker says. Every transaction ends with a statement that only the owner's epoch passes, so that a process
/// that was paused while another one took over commits nothing. The records of a partition are processed in their order, as
/// many as wait in one transaction, and one by one where that fails; partitions side by side.
///
/// It keeps no idempotency keys: a record that a producer has sent twice is two records. Effects outside the database may happen
/// again. After a commit without an answer the database is asked, not the handler run again for what it has.
#[derive(Debug)]
pub struct KafkaEffects {
    config: EffectsConfig,
}

impl KafkaEffects {
    /// Checks the configuration; nothing is connected yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming what is wrong and the fix.
    pub fn new(mut config: EffectsConfig) -> Result<Self, Error> {
        config.source.topics.retry_topics.clear();
        config.source.check()?;
        Ok(Self { config })
    }

    /// Runs until `shutdown` fires: then what runs is brought to its end.
    ///
    /// # Errors
    /// What keeps it from starting or going on; among it a log that ends before what was processed: it was made anew.
    ///
    /// # Cancel safety
    /// A dropped run commits nothing more. What is not committed is processed by the next one.
    pub async fn run<S: PositionStore, H: TxHandler<S>>(
        self,
        scope: Scope,
        store: Arc<S>,
        handler: H,
        shutdown: CancellationToken,
    ) -> Result<EffectsSummary, Error> {
        let config = &self.config;
        let publisher = KafkaPublisher::new(config.source.brokers.clone(), &config.source.properties)?;
        let owners = Arc::new(Owners::new(store, scope, &config.source.group));
        let mut consumer = KafkaConsumer::open_owned(config.source.clone(), owners.clone()).await?;
        let lane =
            Lane { owners: &*owners, handler: &handler, config, publisher: &publisher, shutdown: &shutdown };
        let mut summary = EffectsSummary::default();
        loop {
            let received = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                received = consumer.receive() => received,
            };
            match received {
                Ok(Some(deliveries)) => settle(&consumer, &lane, deliveries, &mut summary).await,
                Ok(None) => break,
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "nothing is received; it is tried again");
                    tokio::time::sleep(BREATH).await;
                }
                Err(error) => {
                    consumer.close().await.unwrap_or_else(|error| tracing::warn!(%error, "not closed"));
                    return Err(error);
                }
            }
        }
        consumer.close().await?;
        Ok(summary)
    }
}

/// Processes deliveries, partitions side by side, and acknowledges what is durable.
async fn settle<S: PositionStore, H: TxHandler<S>>(
    consumer: &KafkaConsumer,
    lane: &Lane<'_, S, H>,
    deliveries: Vec<Delivery>,
    summary: &mut EffectsSummary,
) {
    // The epoch of a tag is that of one assignment of one partition.
    let mut lanes = BTreeMap::<_, Vec<Delivery>>::new();
    for delivery in deliveries {
        lanes.entry(delivery.receipt.tag().epoch).or_default().push(delivery);
    }
    let mut ended: FuturesUnordered<_> = lanes
        .into_values()
        .map(|deliveries| async move { (lane.process(&deliveries).await, deliveries) })
        .collect();
    while let Some((ends, deliveries)) = ended.next().await {
        for (end, delivery) in ends.into_iter().zip(deliveries) {
            let count = match end {
                End::Done => &mut summary.records,
                End::Known => &mut summary.known,
                End::Dead => &mut summary.dead_lettered,
                // Its partition has another owner: for who has it now it is no longer in our hands.
                End::Left => {
                    delivery.receipt.settle(Settlement::Retry { after: Duration::from_secs(1) });
                    continue;
                }
            };
            *count += 1;
            delivery.receipt.settle(Settlement::Ack);
        }
        // Too late is well: the position is in the database.
        let _ = consumer.acker().settle(&consumer.settle_queue().take()).await;
    }
}
