//! The context of a transform's consumer, and the partitions assigned to it. Transactions commit its offsets.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use onceward::Error;
use onceward::telemetry::SourceHealth;
use onceward_kafka::internal::{
    LogId, PartitionStart, REQUEST_TIMEOUT, StartOffsetResolver, TopicIds, TracingContext, classify,
    topic_ids,
};
use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// How long resolving the start offsets may take, and the delay between attempts.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// The partitions that are assigned now; each assignment has its own epoch.
#[derive(Default)]
pub(super) struct TransformAssignment {
    /// A group without an offset starts at the end of the log.
    from_end: bool,
    state: Mutex<AssignmentState>,
}

#[derive(Default)]
struct AssignmentState {
    epochs: HashMap<(String, i32), u64>,
    last_epoch: u64,
    topic_ids: HashMap<String, String>,
    logs: HashMap<(String, i32), LogId>,
    /// Why a partition must not be consumed.
    error: Option<Error>,
}

impl TransformAssignment {
    pub(super) fn new(from_end: bool) -> Self {
        Self { from_end, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, AssignmentState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the epoch of a partition's assignment; `None` if it is not assigned.
    pub(super) fn epoch(&self, topic: &str, partition: i32) -> Option<u64> {
        self.lock().epochs.get(&(topic.to_owned(), partition)).copied()
    }

    /// Returns the last epoch, which grows with each assignment.
    pub(super) fn last_epoch(&self) -> u64 {
        self.lock().last_epoch
    }

    /// Returns the log that the offsets of a partition refer to.
    pub(super) fn log_id(&self, topic: &str, partition: i32) -> LogId {
        self.lock().logs.get(&(topic.to_owned(), partition)).cloned().unwrap_or_default()
    }

    /// Takes the error because of which nothing more must be consumed.
    pub(super) fn take_error(&self) -> Option<Error> {
        self.lock().error.take()
    }

    /// Returns the topics of the assigned partitions, with their ids at the assignment.
    pub(super) fn topic_ids(&self) -> Vec<(String, String)> {
        let state = self.lock();
        let topics: BTreeSet<_> = state.epochs.keys().map(|(topic, _)| topic).collect();
        let id = |topic: &String| Some((topic.clone(), state.topic_ids.get(topic)?.clone()));
        topics.into_iter().filter_map(id).collect()
    }

    /// Resolves the start offsets of partitions, and the ids of their topics. Blocks up to the timeout.
    fn resolve_starts(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> (Result<Vec<PartitionStart>, Error>, TopicIds) {
        let until = Instant::now() + RESOLVE_TIMEOUT;
        loop {
            let ids = topic_ids(consumer.client(), partitions, REQUEST_TIMEOUT);
            let resolver = StartOffsetResolver {
                cluster: "",
                topic_ids: &ids,
                from_end: self.from_end,
                stored: None,
                health: &SourceHealth::default(),
                request_timeout: REQUEST_TIMEOUT,
            };
            match resolver.resolve(consumer, partitions) {
                Ok(resolved) if resolved.pending.is_empty() => return (Ok(resolved.starts), ids),
                Ok(resolved) if Instant::now() >= until => {
                    let unknown = KafkaError::MetadataFetch(Code::LeaderNotAvailable);
                    let reason = resolved.reason.unwrap_or(unknown);
                    let operation = "resolve the start offsets of assigned partitions";
                    return (Err(classify(operation, reason)), ids);
                }
                Ok(_) => std::thread::sleep(RETRY_DELAY),
                Err(error) => return (Err(error), ids),
            }
        }
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let (resolved, ids) = self.resolve_starts(consumer, partitions);
        let mut state = self.lock();
        state.topic_ids.extend(ids.into_iter().filter_map(|(topic, id)| Some((topic, id?))));
        match resolved {
            Ok(starts) => {
                let logs = starts.into_iter().map(|own| ((own.topic.to_string(), own.partition), own.log));
                state.logs.extend(logs);
            }
            Err(error) => state.error = Some(error),
        }
        for own in partitions.elements() {
            state.last_epoch += 1;
            let epoch = state.last_epoch;
            state.epochs.insert((own.topic().to_owned(), own.partition()), epoch);
        }
    }
}

impl ClientContext for TransformAssignment {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        TracingContext.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        TracingContext.error(error, reason);
    }
}

impl ConsumerContext for TransformAssignment {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => self.assign(consumer, partitions),
            Rebalance::Revoke(partitions) => {
                let mut state = self.lock();
                for own in partitions.elements() {
                    state.epochs.remove(&(own.topic().to_owned(), own.partition()));
                }
            }
            Rebalance::Error(error) => {
                tracing::warn!(%error, "rebalance failed; the client rejoins the group");
            }
        }
    }

    fn main_queue_min_poll_interval(&self) -> rdkafka::util::Timeout {
        Duration::from_millis(100).into()
    }
}
