//! The client's callbacks: the user's own, and ours for rebalances: [`Hooked`].

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, Statistics, TopicPartitionList};

use crate::shared::{Shared, ToCommit};

/// The context of a consumer: logs, statistics, errors and OAuth are the user's `C`, rebalances are ours.
pub(crate) struct Hooked<C> {
    pub(crate) user: C,
    pub(crate) shared: Arc<Shared>,
}

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
            Rebalance::Assign(partitions) => self.shared.assign(&named(partitions)),
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
