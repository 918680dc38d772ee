//! The client's callbacks: the user's own, and ours for rebalances: [`Hooked`].

use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, Statistics, TopicPartitionList};

use crate::error;
use crate::native;
use crate::shared::{Shared, ToCommit};
use crate::trouble::Trouble;

/// The context of a consumer: logs, statistics, errors and OAuth are the user's `C`, rebalances are ours.
pub(crate) struct Hooked<C> {
    user: Users<C>,
    pub(crate) shared: Arc<Shared>,
    /// The ids of the topics, as last told.
    ids: Mutex<HashMap<String, String>>,
    /// A group without an offset starts at the end.
    from_end: bool,
    starts: Option<Arc<dyn Starts>>,
}

/// Says where a partition starts when it is assigned, if not where the group has committed.
pub(crate) trait Starts: Send + Sync + 'static {
    /// The offset of the first record wanted; `None` to start where the group has committed. The log ends at `end`. It may
    /// block: the poll thread waits.
    ///
    /// # Errors
    /// The partition must not be consumed.
    fn start(&self, incarnation: &Arc<str>, partition: u32, end: u64)
    -> Result<Option<u64>, onceward::Error>;
}

impl<C: ClientContext> Hooked<C> {
    pub(crate) fn new(
        user: Users<C>,
        shared: Arc<Shared>,
        client: &ClientConfig,
        starts: Option<Arc<dyn Starts>>,
    ) -> Self {
        let from_end = matches!(client.get("auto.offset.reset"), Some("latest" | "largest" | "end"));
        Self { user, shared, ids: Mutex::default(), from_end, starts }
    }

    /// The ids of the topics: a topic may have been made anew since the last assignment.
    fn ids(&self, consumer: &BaseConsumer<Self>) -> HashMap<String, String> {
        let names = self.shared.topics.consumed();
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        match native::describe(consumer.client(), &names, ANSWER) {
            Ok(topics) => {
                for topic in topics {
                    let Some(id) = topic.id else { continue };
                    let before = ids.insert(topic.name.clone(), id.clone());
                    if before.is_some_and(|before| before != id) {
                        tracing::warn!(
                            topic = topic.name,
                            "the topic was deleted and made again: its records are new ones"
                        );
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the cluster does not tell the ids of the topics; those known are used")
            }
        }
        ids.clone()
    }
}

/// Commits where partitions start that start somewhere else than where the group has committed: the client reads that next.
fn commit_starts<C: ClientContext>(
    consumer: &BaseConsumer<Hooked<C>>,
    partitions: &TopicPartitionList,
    ids: &HashMap<String, String>,
    starts: &dyn Starts,
) -> Result<(), onceward::Error> {
    let failed = |error| error::kafka("start where the database says", error);
    let mut list = TopicPartitionList::new();
    for own in partitions.elements() {
        let (topic, partition) = (own.topic(), own.partition());
        let (_, end) = consumer.fetch_watermarks(topic, partition, ANSWER).map_err(failed)?;
        let incarnation = consumer.context().shared.incarnation(topic, ids);
        let number = u32::try_from(partition).unwrap_or_default();
        if let Some(start) = starts.start(&incarnation, number, u64::try_from(end).unwrap_or_default())? {
            let start = Offset::Offset(i64::try_from(start).unwrap_or(i64::MAX));
            list.add_partition_offset(topic, partition, start).map_err(failed)?;
        }
    }
    match list.count() {
        0 => Ok(()),
        _ => consumer.commit(&list, CommitMode::Sync).map_err(failed),
    }
}

/// Commits where partitions start that the group has no offset for. Otherwise what comes before the first commit would be
/// skipped by the next member, if this one died.
fn commit_start<C: ClientContext>(
    consumer: &BaseConsumer<Hooked<C>>,
    partitions: &TopicPartitionList,
) -> KafkaResult<()> {
    let mut asked = TopicPartitionList::new();
    for own in partitions.elements() {
        asked.add_partition(own.topic(), own.partition());
    }
    let mut starts = TopicPartitionList::new();
    for own in consumer.committed_offsets(asked, ANSWER)?.elements() {
        if !matches!(own.offset(), Offset::Offset(_)) {
            let (_, end) = consumer.fetch_watermarks(own.topic(), own.partition(), ANSWER)?;
            starts.add_partition_offset(own.topic(), own.partition(), Offset::Offset(end))?;
        }
    }
    match starts.count() {
        0 => Ok(()),
        _ => consumer.commit(&starts, CommitMode::Sync),
    }
}

/// How long the cluster may take to answer during a rebalance.
const ANSWER: Duration = Duration::from_secs(5);

/// The user's context, for all clients of a consumer: they log, and get tokens, as it does. What keeps them from the brokers is
/// noted.
pub(crate) struct Users<C> {
    user: Arc<C>,
    pub(crate) trouble: Arc<Trouble>,
}

impl<C> Users<C> {
    pub(crate) fn new(user: C) -> Self {
        Self { user: Arc::new(user), trouble: Arc::default() }
    }
}

impl<C> Clone for Users<C> {
    fn clone(&self) -> Self {
        Self { user: Arc::clone(&self.user), trouble: Arc::clone(&self.trouble) }
    }
}

impl<C: ClientContext> ClientContext for Users<C> {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = C::ENABLE_REFRESH_OAUTH_TOKEN;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.user.log(level, facility, line);
    }

    fn stats(&self, statistics: Statistics) {
        self.user.stats(statistics);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.user.stats_raw(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble.note(&error, reason);
        self.user.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn StdError>> {
        self.user.generate_oauth_token(config)
    }
}

impl<C: ClientContext> ConsumerContext for Users<C> {}

impl<C: ClientContext> ClientContext for Hooked<C> {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = C::ENABLE_REFRESH_OAUTH_TOKEN;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.user.log(level, facility, line);
    }

    fn stats(&self, statistics: Statistics) {
        self.user.stats(statistics);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.user.stats_raw(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.user.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn StdError>> {
        self.user.generate_oauth_token(config)
    }
}

impl<C: ClientContext> ConsumerContext for Hooked<C> {
    /// Runs on the poll thread, before the client gives the partitions up or takes them.
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => {
                if self.from_end
                    && let Err(error) = commit_start(consumer, partitions)
                {
                    tracing::warn!(%error, "the offsets to start from are not committed yet");
                }
                let ids = self.ids(consumer);
                if let Some(starts) = &self.starts
                    && let Err(error) = commit_starts(consumer, partitions, &ids, &**starts)
                {
                    // Nothing is delivered any more: whoever receives hears of it first.
                    self.shared.report(error);
                    self.shared.lock().stop = true;
                }
                self.shared.assign(&named(partitions), &ids);
            }
            // Another member may have them already: a commit could undo its own.
            Rebalance::Revoke(partitions) if consumer.assignment_lost() => {
                let partitions = named(partitions);
                tracing::warn!(
                    count = partitions.len(),
                    "partitions were lost to other members; nothing is committed for them"
                );
                self.shared.forget(&partitions);
            }
            Rebalance::Revoke(partitions) => {
                let partitions = named(partitions);
                let last = self.shared.drain(&partitions, self.shared.topics.drain_timeout);
                commit(consumer, &last, CommitMode::Sync);
                self.shared.forget(&partitions);
            }
            Rebalance::Error(error) => tracing::warn!(%error, "a rebalance failed; the client joins again"),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let elements = offsets.elements();
        if let Err(error) = result {
            tracing::warn!(%error, "offsets were not committed; they are sent again");
            self.shared.refused(elements.iter().map(|own| (own.topic(), own.partition())));
            return;
        }
        self.shared.confirmed(elements.iter().filter_map(|own| match (own.error(), own.offset()) {
            (Ok(()), Offset::Offset(offset)) => {
                Some((own.topic(), own.partition(), u64::try_from(offset).ok()?))
            }
            _ => None,
        }));
    }

    /// Callbacks are served at least this often while a poll waits.
    fn main_queue_min_poll_interval(&self) -> rdkafka::util::Timeout {
        Duration::from_millis(100).into()
    }
}

fn named(partitions: &TopicPartitionList) -> Vec<(String, i32)> {
    partitions.elements().iter().map(|own| (own.topic().to_owned(), own.partition())).collect()
}

/// Commits, if there is something to commit. What is refused is reported and sent again by the next commit.
pub(crate) fn commit<C: ClientContext>(
    consumer: &BaseConsumer<Hooked<C>>,
    offsets: &[ToCommit],
    mode: CommitMode,
) {
    if offsets.is_empty() {
        return;
    }
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for ToCommit { topic, partition, offset } in offsets {
        let Ok(offset) = i64::try_from(*offset) else { continue };
        if let Err(error) = list.add_partition_offset(topic, *partition, Offset::Offset(offset)) {
            tracing::error!(%error, topic = &**topic, partition, "an offset cannot be committed");
        }
    }
    match consumer.commit(&list, mode) {
        Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
        Err(error) => {
            tracing::warn!(%error, "offsets were not committed; what they tell of may be delivered again");
            consumer.context().shared.refused(offsets.iter().map(|own| (&*own.topic, own.partition)));
        }
    }
}
