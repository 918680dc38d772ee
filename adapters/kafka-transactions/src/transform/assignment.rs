//! The context of a transform's consumer, and the partitions assigned to it. Transactions commit its offsets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
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

use crate::transform::running_transaction::RunningTransaction;

/// How long resolving the start offsets may take, and the delay between attempts.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// A partition from its assignment until it is revoked, or rewound after a transaction that did not commit. Each record refers to
/// the one that it was consumed under.
#[derive(Debug)]
pub(super) struct PartitionAssignment {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    /// The log that its offsets refer to, and the incarnation of its positions.
    pub(super) log: LogId,
    pub(super) incarnation: Arc<str>,
    /// The offset after the last consumed record; negative before the first one.
    next: AtomicI64,
    has_ended: AtomicBool,
}

impl PartitionAssignment {
    pub(super) fn new(topic: Arc<str>, partition: i32, log: LogId, incarnation: Arc<str>) -> Self {
        let (next, has_ended) = (AtomicI64::new(-1), AtomicBool::new(false));
        Self { topic, partition, log, incarnation, next, has_ended }
    }

    /// Returns false if its records must not be committed: the partition was revoked, or they are consumed again.
    pub(super) fn is_current(&self) -> bool {
        !self.has_ended.load(Ordering::Acquire)
    }

    pub(super) fn is(&self, topic: &str, partition: i32) -> bool {
        self.partition == partition && *self.topic == *topic
    }

    /// Records that the record at `offset` is consumed. Returns false if a later one was consumed before.
    pub(super) fn advance(&self, offset: i64) -> bool {
        self.next.swap(offset + 1, Ordering::Relaxed) <= offset
    }

    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
    }
}

/// The partitions that are assigned now.
#[derive(Default)]
pub(super) struct TransformAssignment {
    /// A group without an offset starts at the end of the log.
    from_end: bool,
    /// The cluster's id, known before the first assignment.
    cluster: OnceLock<String>,
    /// The number of assignments and revocations.
    changes: AtomicU64,
    /// Partitions are given up after it.
    open: Arc<RunningTransaction>,
    state: Mutex<AssignmentState>,
}

#[derive(Default)]
struct AssignmentState {
    /// By topic and partition.
    partitions: HashMap<Arc<str>, HashMap<i32, Arc<PartitionAssignment>>>,
    topic_ids: HashMap<String, String>,
    /// Why a partition must not be consumed.
    error: Option<Error>,
}

impl AssignmentState {
    fn insert(&mut self, own: PartitionAssignment) {
        let of_topic = self.partitions.entry(Arc::clone(&own.topic)).or_default();
        if let Some(before) = of_topic.insert(own.partition, Arc::new(own)) {
            before.end();
        }
    }

    fn remove(&mut self, topic: &str, partition: i32) {
        let Some(of_topic) = self.partitions.get_mut(topic) else { return };
        if let Some(own) = of_topic.remove(&partition) {
            own.end();
        }
        if of_topic.is_empty() {
            self.partitions.remove(topic);
        }
    }
}

impl TransformAssignment {
    pub(super) fn new(from_end: bool, open: Arc<RunningTransaction>) -> Self {
        Self { from_end, open, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, AssignmentState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the cluster's id, which positions carry. Called once, before the subscription.
    pub(super) fn set_cluster(&self, cluster: String) {
        let _ = self.cluster.set(cluster);
    }

    /// Returns an assigned partition.
    pub(super) fn find(&self, topic: &str, partition: i32) -> Option<Arc<PartitionAssignment>> {
        self.lock().partitions.get(topic)?.get(&partition).cloned()
    }

    /// Renews the assignment of a partition: what was consumed of it is not current any more.
    pub(super) fn renew(&self, own: &PartitionAssignment) {
        let (topic, incarnation) = (Arc::clone(&own.topic), Arc::clone(&own.incarnation));
        let renewed = PartitionAssignment::new(topic, own.partition, own.log.clone(), incarnation);
        self.lock().insert(renewed);
    }

    /// Returns how often partitions were assigned or revoked.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Takes the error because of which nothing more must be consumed.
    pub(super) fn take_error(&self) -> Option<Error> {
        self.lock().error.take()
    }

    /// Returns the topics of the assigned partitions, with their ids at the assignment.
    pub(super) fn topic_ids(&self) -> Vec<(String, String)> {
        let state = self.lock();
        let id = |topic: &Arc<str>| Some((topic.to_string(), state.topic_ids.get(&**topic)?.clone()));
        state.partitions.keys().filter_map(id).collect()
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
        let mut logs = HashMap::new();
        match resolved {
            Ok(starts) => logs.extend(starts.into_iter().map(|own| ((own.topic, own.partition), own.log))),
            Err(error) => state.error = Some(error),
        }
        let cluster = self.cluster.get().map_or("", String::as_str);
        for own in partitions.elements() {
            let (topic, partition) = (Arc::<str>::from(own.topic()), own.partition());
            let log = logs.remove(&(Arc::clone(&topic), partition)).unwrap_or_default();
            let incarnation = log.incarnation(cluster, &topic).into();
            state.insert(PartitionAssignment::new(topic, partition, log, incarnation));
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
        self.changes.fetch_add(1, Ordering::Relaxed);
        match rebalance {
            Rebalance::Assign(partitions) => self.assign(consumer, partitions),
            Rebalance::Revoke(partitions) => {
                self.open.wait_closed();
                let mut state = self.lock();
                for own in partitions.elements() {
                    state.remove(own.topic(), own.partition());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(partition: i32) -> PartitionAssignment {
        PartitionAssignment::new("in".into(), partition, LogId::default(), "cluster/in".into())
    }

    #[test]
    fn what_was_consumed_before_a_revocation_or_a_rewind_is_not_current() {
        let assignment = TransformAssignment::default();
        assignment.lock().insert(assigned(0));
        assignment.lock().insert(assigned(1));
        let [rewound, revoked] = [0, 1].map(|partition| assignment.find("in", partition).unwrap());
        assignment.renew(&rewound);
        assignment.lock().remove("in", 1);
        assert!(!rewound.is_current() && !revoked.is_current());
        assert!(assignment.find("in", 1).is_none());
        let renewed = assignment.find("in", 0).unwrap();
        assert!(renewed.is_current() && renewed.is("in", 0) && !renewed.is("in", 1) && !renewed.is("out", 0));
        // Assigned again without a revocation.
        assignment.lock().insert(assigned(0));
        assert!(!renewed.is_current());
    }

    #[test]
    fn offsets_of_an_assignment_only_go_forward() {
        let own = assigned(0);
        assert!(own.advance(7) && own.advance(8) && own.advance(20));
        assert!(!own.advance(20), "an offset is not consumed twice");
        let own = assigned(0);
        assert!(own.advance(7) && !own.advance(3), "the log was replaced");
    }
}
