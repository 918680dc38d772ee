//! Records in, effects in a database, each record once: [`KafkaEffects`].

mod keys;
mod lane;
mod ownership;
mod queues;

use std::sync::Arc;
use std::time::Duration;

use onceward::retry::RetryPolicy;
use onceward::store::PositionStore;
use onceward::{Acker, Consumer, Delivery, Error, ErrorKind, Scope, Settlement, Tag, TxHandler};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::KafkaConfig;
use crate::consumer::KafkaConsumer;
use crate::publisher::KafkaPublisher;
pub use keys::EffectKeys;
use keys::Marker;
use lane::{End, Lane};
use ownership::Owners;
use queues::Queues;

/// Between two tries of a broker that does not answer.
const BREATH: Duration = Duration::from_millis(200);
/// How many expired keys are removed at a time.
const PURGE: u32 = 1000;
/// Nothing more is taken while so many deliveries wait or are under way. The client hands over thousands of one partition
/// before it comes to the next: with fewer, partitions would wait for each other.
const ENOUGH: usize = 20_000;

/// What a [`KafkaEffects`] consumes, and what it does about failures.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EffectsConfig {
    /// The topics and the group, and how to connect. Retry topics are not used: order is kept.
    pub source: KafkaConfig,
    /// How long one run of the handler may take; default 30 s.
    pub handler_timeout: Duration,
    /// How often and when a record is tried again, in its place. Attempts are counted in this process.
    pub retry: RetryPolicy,
    /// The topic for records that failed for good. Without one such a record is tried again for ever, and its partition
    /// waits. Of a record that does not fit into it a letter without payload is sent: the headers say where it stands in its
    /// topic, and `onceward-oversize-bytes` how large it is.
    pub dead_letters: Option<String>,
    /// With keys, records that a producer has sent twice have one effect, too. `None`: positions alone.
    pub keys: Option<EffectKeys>,
}

impl EffectsConfig {
    /// Effects of the records of `source`, with the defaults.
    pub fn new(source: KafkaConfig) -> Self {
        let handler_timeout = Duration::from_secs(30);
        Self { source, handler_timeout, retry: RetryPolicy::default(), dead_letters: None, keys: None }
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
    /// Records without an effect, since one with the same key has it.
    pub copies: u64,
    /// Records without a key, passed over by policy.
    pub rejected: u64,
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
/// Without [`keys`](EffectsConfig::keys) a record that a producer has sent twice is two records. With them it is one, on whichever
/// partitions its copies are: its key is completed in the same transaction. A record that failed for good leaves no key: what is
/// moved back from the dead-letter topic runs again, and so does a copy.
///
/// Effects outside the database may happen again. After a commit without an answer the database is asked, not the handler run
/// again for what it has.
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
        config.keys.as_ref().map_or(Ok(()), EffectKeys::check)?;
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
        let Self { config } = self;
        config.keys.as_ref().map_or(Ok(()), |keys| keys.check_scope(&scope))?;
        let publisher = KafkaPublisher::from_config(&config.source)?;
        let owners = Arc::new(Owners::new(store, scope, &config.source.group));
        let mut consumer = KafkaConsumer::open_owned(config.source.clone(), owners.clone()).await?;
        let stopping = shutdown.child_token();
        let marker = config.keys.clone().map(Marker::new);
        let lane = Lane { owners, handler, config, marker, publisher, shutdown: stopping.clone() };
        let lane = Arc::new(lane);
        let mut settling = Settling { acker: consumer.acker(), summary: EffectsSummary::default() };
        let (mut queues, mut under_way) = (Queues::default(), JoinSet::new());
        let bytes = lane.config.source.topics.buffer_bytes;
        let flow = consumer.flow();
        let _cleaning = lane.marker.is_some().then(|| Cleaning::start(Arc::clone(&lane.owners.store)));
        let mut again_at = Instant::now();
        let ended = loop {
            for part in queues.start() {
                let is_leaving = |delivery: &Delivery| consumer.is_leaving(delivery.tag.epoch);
                if part.first().is_some_and(is_leaving) {
                    // The rebalance waits for what is under way, and need not wait for more.
                    settling.part(&mut queues, vec![End::Left; part.len()], part).await;
                } else {
                    under_way.spawn(process(Arc::clone(&lane), part));
                }
            }
            for (epoch, pause) in queues.flow() {
                match &flow {
                    Some(flow) if pause => flow.pause(epoch),
                    Some(flow) => flow.resume(epoch),
                    None => {}
                }
            }
            let received = tokio::select! {
                biased;
                () = shutdown.cancelled() => break Ok(()),
                Some(ended) = under_way.join_next() => match ended {
                    Ok((ends, part)) => {
                        settling.part(&mut queues, ends, part).await;
                        continue;
                    }
                    Err(error) => break Err(lost(error)),
                },
                received = async { tokio::time::sleep_until(again_at).await; consumer.receive().await },
                    if queues.have_room(ENOUGH, bytes) => received,
            };
            match received {
                Ok(Some(deliveries)) => settling.settle(Vec::new(), queues.push(deliveries)).await,
                Ok(None) => break Ok(()),
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "nothing is received; it is tried again");
                    again_at = Instant::now() + BREATH;
                }
                Err(error) => break Err(error),
            }
        };
        stopping.cancel();
        // What runs is brought to its end; what waits is for the partition's next owner.
        while let Some(ended) = under_way.join_next().await {
            if let Ok((ends, part)) = ended {
                settling.part(&mut queues, ends, part).await;
            }
        }
        let closed = consumer.close().await;
        if ended.is_err()
            && let Err(error) = &closed
        {
            tracing::warn!(%error, "not closed");
        }
        ended.and(closed).map(|()| settling.summary)
    }
}

/// A part panicked outside the handler, or the runtime ends. Its partition's position would be passed over by what follows.
fn lost(error: JoinError) -> Error {
    let what =
        "records were left in the middle of their processing; nothing of them is committed. Start again";
    Error::new(ErrorKind::Internal, "process records", what).with_source(error)
}

/// Removes keys whose time is over, while it lives.
struct Cleaning(tokio::task::AbortHandle);

impl Cleaning {
    fn start<S: PositionStore>(store: Arc<S>) -> Self {
        let clean = async move {
            // Stores that forget by themselves have no interval.
            let Some(expiring) = store.expiring() else { return };
            let interval = expiring.purge_interval();
            loop {
                tokio::time::sleep(interval).await;
                loop {
                    match expiring.purge(PURGE).await {
                        Ok(removed) if removed >= u64::from(PURGE) => {}
                        Ok(_) => break,
                        Err(error) => {
                            tracing::debug!(%error, "expired keys cannot be removed now; tried again later");
                            break;
                        }
                    }
                }
            }
        };
        Self(tokio::spawn(clean).abort_handle())
    }
}

impl Drop for Cleaning {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How each of a part's deliveries ended.
async fn process<S: PositionStore, H: TxHandler<S>>(
    lane: Arc<Lane<S, H>>,
    part: Vec<Delivery>,
) -> (Vec<End>, Vec<Delivery>) {
    (lane.process(&part).await, part)
}

/// Acknowledges what is durable, and counts it.
struct Settling {
    acker: Arc<dyn Acker>,
    summary: EffectsSummary,
}

impl Settling {
    async fn part(&mut self, queues: &mut Queues, ends: Vec<End>, part: Vec<Delivery>) {
        let epoch = part.first().map(|delivery| delivery.tag.epoch);
        let (mut settlements, mut left) = (Vec::with_capacity(part.len()), Vec::new());
        for (end, delivery) in ends.into_iter().zip(part) {
            let count = match end {
                End::Done => &mut self.summary.records,
                End::Known => &mut self.summary.known,
                End::Copy => &mut self.summary.copies,
                End::Rejected => &mut self.summary.rejected,
                End::Dead => &mut self.summary.dead_lettered,
                End::Left => {
                    left.push(delivery);
                    continue;
                }
            };
            *count += 1;
            settlements.push((delivery.tag, Settlement::Ack));
        }
        if let Some(epoch) = epoch {
            if !left.is_empty() {
                left.extend(queues.close(epoch));
            }
            queues.ended(epoch);
        }
        self.settle(settlements, left).await;
    }

    /// Settles, and returns what is `left` undone: its partition has another owner.
    async fn settle(&self, mut settlements: Vec<(Tag, Settlement)>, left: Vec<Delivery>) {
        let retry = Settlement::Retry { after: Duration::from_secs(1) };
        settlements.extend(left.iter().map(|delivery| (delivery.tag, retry)));
        // A settlement that is too late does no harm: the position is in the database.
        let _ = self.acker.settle(&settlements).await;
    }
}
