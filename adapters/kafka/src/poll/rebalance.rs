//! The client's callbacks: the user's own, and ours for rebalances: [`Hooked`].

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, Statistics, TopicPartitionList};

use crate::auth::password::{PasswordFile, Renewal};
use crate::client::diagnosis::Trouble;
use crate::client::native;
use crate::poll::revocation::{self as leaving, Leaving};
use crate::start_offsets::{self as begin, ANSWER, Beginner, Begun, Starts};
use crate::state::Shared;
use crate::state::assignment::ToCommit;

/// The context of a consumer: logs, statistics, errors and OAuth are the user's `C`, rebalances are ours.
pub(crate) struct Hooked<C> {
    user: Users<C>,
    pub(crate) shared: Arc<Shared>,
    /// A group without an offset starts at the end.
    from_end: bool,
    pub(crate) starts: Option<Arc<dyn Starts>>,
    pub(crate) group: String,
    pub(crate) strategy: String,
}

impl<C: ClientContext> Hooked<C> {
    pub(crate) fn new(
        user: Users<C>,
        shared: Arc<Shared>,
        client: &ClientConfig,
        from_end: bool,
        starts: Option<Arc<dyn Starts>>,
    ) -> Self {
        let get = |name| client.get(name).unwrap_or_default().to_owned();
        let (group, strategy) = (get("group.id"), get("partition.assignment.strategy"));
        Self { user, shared, from_end, starts, group, strategy }
    }

    /// For the client with this context.
    pub(crate) fn renewal(&self) -> Renewal {
        self.user.renewal()
    }

    /// Where `partitions` begin, as far as that can be told now. Each question may take up to `answer`.
    ///
    /// # Errors
    /// One of them must not be consumed.
    pub(crate) fn begin(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
        answer: Duration,
    ) -> Result<Begun, onceward::Error> {
        // Asked each time: a topic may have been recreated since the last assignment.
        let mut ids = begin::ids(consumer.client(), partitions, answer);
        {
            let state = self.shared.lock();
            // Another broker than the last one may not know yet that a topic is gone.
            ids.retain(|_, id| id.as_ref().is_none_or(|id| !state.is_gone(id)));
        }
        let beginner = Beginner {
            cluster: &self.shared.cluster,
            ids: &ids,
            from_end: self.from_end,
            starts: self.starts.as_deref(),
            health: &self.shared.health,
            answer,
        };
        beginner.begin(consumer, partitions)
    }

    /// Notes partitions that are assigned, and tells the client where they begin. What is not known to begin somewhere is not
    /// read.
    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &mut TopicPartitionList) {
        let begun = match self.begin(consumer, partitions, ANSWER) {
            Ok(begun) => begun,
            // Nothing is delivered any more, and whoever receives hears of it first.
            Err(error) => {
                self.shared.report(error);
                self.shared.lock().stop = true;
                Begun::default()
            }
        };
        let placed = begun.begins.iter().map(|own| (own.topic.as_str(), own.partition, own.offset()));
        let unplaced = begun.pending.iter().map(|(topic, number)| (topic.as_str(), *number, Offset::End));
        for (topic, number, offset) in placed.chain(unplaced) {
            if let Some(mut own) = partitions.find_partition(topic, number)
                && let Err(error) = own.set_offset(offset)
            {
                tracing::error!(%error, topic, number, "a partition cannot be told where it begins");
            }
        }
        self.shared.assign(&begun.begins);
        self.shared.put_off(begun.pending, begun.reason.as_ref());
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions: Vec<_> =
            list.elements().iter().map(|own| (own.topic().to_owned(), own.partition())).collect();
        if consumer.assignment_lost() || self.shared.lock().closing {
            leaving::give_up(consumer, &self.shared, &partitions);
            leaving::unassign(consumer, list);
        } else {
            self.shared.leave(&partitions);
            let limit = self.shared.topics.drain();
            self.shared.lock().leaving = Some(Leaving::new(partitions, limit));
        }
    }
}

/// The user's context, for all clients of a consumer: they log, and get tokens, as it does. What keeps them from the brokers is
/// noted.
pub(crate) struct Users<C> {
    user: Arc<C>,
    pub(crate) trouble: Arc<Trouble>,
    password: Option<Arc<PasswordFile>>,
}

impl<C> Users<C> {
    pub(crate) fn new(user: C) -> Self {
        Self { user: Arc::new(user), trouble: Arc::default(), password: None }
    }

    /// With a file that holds the password of its clients.
    pub(crate) fn with_password(mut self, file: Option<Arc<PasswordFile>>) -> Self {
        self.password = file;
        self
    }

    /// For one client with this context.
    pub(crate) fn renewal(&self) -> Renewal {
        Renewal::new(self.password.clone())
    }
}

impl<C> Clone for Users<C> {
    fn clone(&self) -> Self {
        let (user, trouble) = (Arc::clone(&self.user), Arc::clone(&self.trouble));
        Self { user, trouble, password: self.password.clone() }
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
        if facility == "OFFSET" {
            // The client goes on elsewhere than it was: what that means is looked at now.
            self.shared.lock().doubts = true;
            self.shared.asked.notify_all();
        }
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
    /// Runs on the poll thread. The client continues once the partitions are assigned or given up: for those that are
    /// revoked that is later, see [`leaving`](crate::poll::revocation).
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        leaving::finish(consumer, &self.shared);
        // The wrapper calls this for these two only.
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS {
            return self.revoke(consumer, list);
        }
        self.assign(consumer, list);
        let assigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
            _ => consumer.assign(list),
        };
        if let Err(error) = assigned {
            tracing::warn!(%error, "partitions cannot be taken; the client joins the group again");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let elements = offsets.elements();
        self.shared.lock().committing = None;
        if let Err(error) = result {
            tracing::warn!(%error, "offsets were not committed; they are sent again");
            self.shared.refused(elements.iter().map(|own| (own.topic(), own.partition())));
            return;
        }
        self.shared.confirmed(elements.iter().filter_map(|own| match (own.error(), own.offset()) {
            (Ok(()), Offset::Offset(offset)) => {
                Some((own.topic(), own.partition(), u64::try_from(offset).ok()?, own.metadata()))
            }
            _ => None,
        }));
    }

    /// Callbacks are served at least this often while a poll waits.
    fn main_queue_min_poll_interval(&self) -> rdkafka::util::Timeout {
        Duration::from_millis(100).into()
    }
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
    for ToCommit { topic, partition, offset, stamp } in offsets {
        let Ok(offset) = i64::try_from(*offset) else { continue };
        if let Err(error) = list.add_partition_offset(topic, *partition, Offset::Offset(offset)) {
            tracing::error!(%error, topic = &**topic, partition, "an offset cannot be committed");
        }
        begin::stamp(&mut list, topic, *partition, stamp);
    }
    let shared = &consumer.context().shared;
    let sent = match mode {
        CommitMode::Async => {
            shared.lock().committing = Some(Instant::now());
            native::commit(consumer.client(), &list).inspect_err(|_| shared.lock().committing = None)
        }
        CommitMode::Sync => consumer.commit(&list, mode),
    };
    match sent {
        Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
        Err(error) => {
            tracing::warn!(%error, "offsets were not committed; what they tell of may be delivered again");
            shared.refused(offsets.iter().map(|own| (&*own.topic, own.partition)));
        }
    }
}
