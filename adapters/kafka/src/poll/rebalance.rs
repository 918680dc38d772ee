//! The client context of a consumer: rebalances and commit results, beside the user's callbacks. [`RebalanceContext`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};

use crate::auth::password::PasswordRefresh;
use crate::client::context::{SharedContext, forward_client_context};
use crate::handle::Handle;
use crate::poll::revocation;
use crate::start_offsets::{
    REQUEST_TIMEOUT, ResolvedStarts, StartOffsetResolver, StoredPositions, topic_ids,
};
use crate::state::partition::TopicPartition;

/// The context of a consumer: logs, statistics, errors and tokens are the user's `C`, rebalances and commit results are ours.
pub(crate) struct RebalanceContext<C> {
    user: SharedContext<C>,
    handle: Arc<Handle>,
    /// A group without an offset starts at the end of the log.
    from_end: bool,
    pub(super) stored: Option<Arc<dyn StoredPositions>>,
    pub(super) group: String,
    pub(super) strategy: String,
}

impl<C: ClientContext> RebalanceContext<C> {
    pub(crate) fn new(
        user: SharedContext<C>,
        handle: Arc<Handle>,
        client: &ClientConfig,
        from_end: bool,
        stored: Option<Arc<dyn StoredPositions>>,
    ) -> Self {
        let get = |name| client.get(name).unwrap_or_default().to_owned();
        let (group, strategy) = (get("group.id"), get("partition.assignment.strategy"));
        Self { user, handle, from_end, stored, group, strategy }
    }

    /// Returns the password refresh of the client with this context.
    pub(super) fn password_refresh(&self) -> PasswordRefresh {
        self.user.password_refresh()
    }

    /// Resolves the start offsets of `partitions`, as far as they are known now. Each request may take `request_timeout`. Blocks.
    ///
    /// # Errors
    /// A partition must not be consumed.
    pub(super) fn resolve_starts(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
        request_timeout: Duration,
    ) -> Result<ResolvedStarts, onceward::Error> {
        // Fetched each time: a topic may have been recreated since the last assignment.
        let mut ids = topic_ids(consumer.client(), partitions, request_timeout);
        let now = Instant::now();
        // A broker may not know yet that a topic was deleted.
        self.handle.with(|state| {
            ids.retain(|_, id| id.as_ref().is_none_or(|id| !state.is_deleted(id, now)));
        });
        let resolver = StartOffsetResolver {
            cluster: &self.handle.cluster,
            topic_ids: &ids,
            from_end: self.from_end,
            stored: self.stored.as_deref(),
            health: &self.handle.health,
            request_timeout,
        };
        resolver.resolve(consumer, partitions)
    }

    /// Adds assigned partitions to the state, and sets their start offsets for the client. Partitions with an unknown start offset
    /// are not read.
    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &mut TopicPartitionList) {
        let resolved = match self.resolve_starts(consumer, partitions, REQUEST_TIMEOUT) {
            Ok(resolved) => resolved,
            // Nothing more is delivered, and the next `receive` returns the error.
            Err(error) => {
                self.handle.report(error);
                self.handle.stop();
                ResolvedStarts::default()
            }
        };
        let known = resolved.starts.iter().map(|own| (&own.topic, own.partition, own.offset()));
        let unknown = resolved.pending.iter().map(|(topic, number)| (topic, *number, Offset::End));
        for (topic, number, offset) in known.chain(unknown) {
            if let Some(mut own) = partitions.find_partition(topic, number)
                && let Err(error) = own.set_offset(offset)
            {
                tracing::error!(%error, topic = &**topic, number, "setting the start offset of a partition failed");
            }
        }
        let (now, reason) = (Instant::now(), resolved.reason.map(|error| error.to_string()));
        let trouble = self.handle.with(|state| {
            state.assign(&resolved.starts, now);
            state.postpone(resolved.pending, reason, now)
        });
        self.handle.health.set_up();
        if let Some(cause) = trouble {
            tracing::warn!(cause, "partitions are not consumed yet");
        }
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let elements = list.elements();
        let partitions: Vec<TopicPartition> =
            elements.iter().map(|own| (Arc::from(own.topic()), own.partition())).collect();
        if consumer.assignment_lost() || self.handle.is_closing() {
            revocation::give_up(consumer, &self.handle, &partitions);
            revocation::unassign(consumer, list);
        } else {
            let limit = self.handle.topics.drain();
            self.handle.with(|state| state.leave(partitions, limit, Instant::now()));
        }
    }
}

impl<C: ClientContext> ClientContext for RebalanceContext<C> {
    forward_client_context!(user);

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        if facility == "OFFSET" {
            // The client has reset an offset: the log may have been replaced.
            self.handle.with(|state| state.request_log_check());
        }
        self.user.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.user.error(error, reason);
    }
}

impl<C: ClientContext> ConsumerContext for RebalanceContext<C> {
    /// Runs on the poll thread. The client continues once the partitions are assigned or given up; revoked partitions are given
    /// up later, by [`revocation::advance`].
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        revocation::finish(consumer, &self.handle);
        // The wrapper calls this for assignments and revocations only.
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS {
            return self.revoke(consumer, list);
        }
        self.assign(consumer, list);
        let assigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
            _ => consumer.assign(list),
        };
        if let Err(error) = assigned {
            tracing::warn!(%error, "assigning partitions failed; the client rejoins the group");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let elements = offsets.elements();
        if let Err(error) = result {
            tracing::warn!(%error, "offset commit failed; retrying");
            let failed = elements.iter().map(|own| (own.topic(), own.partition()));
            return self.handle.with(|state| {
                state.set_commit_sent(None);
                state.commit_failed(failed);
            });
        }
        let confirmed = elements.iter().filter_map(|own| match (own.error(), own.offset()) {
            (Ok(()), Offset::Offset(offset)) => {
                Some((own.topic(), own.partition(), u64::try_from(offset).ok()?, own.metadata()))
            }
            _ => None,
        });
        self.handle.with(|state| {
            state.set_commit_sent(None);
            state.commit_confirmed(confirmed);
        });
    }

    /// Bounds how long callbacks wait while a poll waits.
    fn main_queue_min_poll_interval(&self) -> rdkafka::util::Timeout {
        Duration::from_millis(100).into()
    }
}
