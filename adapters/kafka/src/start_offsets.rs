//! Determines the start offsets of assigned partitions: the group's offset is compared with the log before anything is read.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use onceward::telemetry::SourceHealth;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use crate::client::native::{self, LogEdge};
use crate::error;
use crate::log_change::{LogChange, truncation_error};
use crate::log_id::LogId;
use crate::retention::OffsetGap;
use crate::state::partition::TopicPartition;
use crate::state::start::{PartitionStart, to_client_offset};

/// The timeout of one request during a rebalance.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Positions that are stored outside Kafka and take precedence over the group's offsets.
pub trait StoredPositions: Send + Sync + 'static {
    /// Returns the first offset to deliver; `None` to start at the group's offset. The log ends at `log_end`. May block: the poll
    /// thread waits.
    ///
    /// # Errors
    /// The partition must not be consumed.
    fn start_offset(
        &self,
        incarnation: &Arc<str>,
        partition: u32,
        log_end: u64,
    ) -> Result<Option<u64>, onceward::Error>;
}

/// Resolves the start offsets of partitions.
pub struct StartOffsetResolver<'a> {
    /// The id of the cluster.
    pub cluster: &'a str,
    /// The topics' current ids, from [`topic_ids`].
    pub topic_ids: &'a TopicIds,
    /// A partition without an offset of the group starts at its end.
    pub from_end: bool,
    /// Positions that take precedence over the group's offsets.
    pub stored: Option<&'a dyn StoredPositions>,
    /// Counts resets and lost records.
    pub health: &'a SourceHealth,
    /// The timeout of one request.
    pub request_timeout: Duration,
}

/// The ids of topics; `None` from brokers older than 2.8. A topic that the cluster does not report is absent.
pub type TopicIds = HashMap<String, Option<String>>;

/// The start offsets of partitions.
#[derive(Debug, Default)]
pub struct ResolvedStarts {
    /// Partitions with their start offsets.
    pub starts: Vec<PartitionStart>,
    /// Partitions whose start offset is unknown: they have no leader, or the cluster does not answer. They must not be read.
    pub pending: Vec<TopicPartition>,
    /// Why it is unknown, if there was an error.
    pub reason: Option<KafkaError>,
}

impl ResolvedStarts {
    fn all_pending(partitions: &TopicPartitionList, reason: KafkaError) -> Self {
        let pending = partitions.elements().iter().map(to_topic_partition).collect();
        Self { starts: Vec::new(), pending, reason: Some(reason) }
    }
}

/// The group's offset in a partition, if any, and the extent of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct GroupOffset {
    committed: Option<u64>,
    /// The log that the committed offset refers to; `None` if another program committed it.
    log: Option<LogId>,
    log_start: u64,
    log_end: u64,
}

/// The log of a partition and where to start in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct StartPlan {
    log: LogId,
    /// The first offset to deliver; `None` for the start of the log.
    from: Option<u64>,
    /// How the log was replaced since the group committed its offset.
    reset: Option<LogChange>,
}

/// Plans the start of a partition. A committed offset of another topic, or beyond the end of the log, is invalid: then the
/// whole log is new.
fn plan_start(found: &GroupOffset, topic_id: Option<&String>, from_end: bool) -> StartPlan {
    let present = LogId { topic_id: topic_id.cloned(), truncations: 0 };
    let Some(committed) = found.committed else {
        return StartPlan { log: present, from: from_end.then_some(found.log_end), reset: None };
    };
    let old = found.log.clone().unwrap_or_else(|| present.clone());
    let from_start = Some(found.log_start);
    if topic_id.is_some() && old.topic_id != present.topic_id {
        return StartPlan { log: present, from: from_start, reset: Some(LogChange::Recreated) };
    }
    // A broker without topic ids, in a cluster whose others have them, does not change the log's identity.
    let log = LogId { topic_id: present.topic_id.or(old.topic_id), truncations: old.truncations };
    if committed > found.log_end {
        let log = LogId { truncations: log.truncations + 1, ..log };
        return StartPlan { log, from: from_start, reset: Some(LogChange::Truncated) };
    }
    StartPlan { log, from: Some(committed), reset: None }
}

impl StartOffsetResolver<'_> {
    /// Resolves the start offset of each partition. A start offset that differs from the group's is committed before anything is
    /// read, so that the next owner does not continue at an offset of another log. A start at the end is committed as well:
    /// otherwise, if this member died before its first commit, the next one would skip the records in between. Blocks.
    ///
    /// # Errors
    /// A partition must not be consumed.
    pub fn resolve<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        partitions: &TopicPartitionList,
    ) -> Result<ResolvedStarts, onceward::Error> {
        if partitions.count() == 0 {
            return Ok(ResolvedStarts::default());
        }
        let offsets = match fetch_offsets(consumer, partitions, self.request_timeout) {
            Ok(offsets) => offsets,
            Err(error) => return Ok(ResolvedStarts::all_pending(partitions, error)),
        };
        let mut resolved = ResolvedStarts::default();
        let mut corrections = TopicPartitionList::new();
        let mut corrected = Vec::new();
        for own in partitions.elements() {
            let key = to_topic_partition(&own);
            let (Some(id), Some(found)) = (self.topic_ids.get(&*key.0), offsets.get(&key)) else {
                resolved.pending.push(key);
                continue;
            };
            let plan = self.apply_positions(plan_start(found, id.as_ref(), self.from_end), &key, found)?;
            if let Some(from) = plan.from.filter(|from| found.committed != Some(*from)) {
                corrections
                    .add_partition_offset(&key.0, key.1, to_client_offset(from))
                    .map_err(|error| error::classify(OPERATION, error))?;
                set_metadata(&mut corrections, &key.0, key.1, &plan.log.to_string());
                corrected.push(key.clone());
            }
            let by_policy = plan.from.is_none();
            let from = plan.from.or(Some(found.log_start));
            let (topic, partition) = key;
            resolved.starts.push(PartitionStart { topic, partition, log: plan.log, from, by_policy });
        }
        if corrections.count() > 0
            && let Err(error) = consumer.commit(&corrections, CommitMode::Sync)
        {
            let is_corrected =
                |own: &PartitionStart| corrected.contains(&(Arc::clone(&own.topic), own.partition));
            resolved.starts.retain(|own| !is_corrected(own));
            resolved.pending.append(&mut corrected);
            resolved.reason = Some(error);
        }
        Ok(resolved)
    }

    /// Applies the stored positions and the start of the log to `plan`, and counts resets and lost records.
    fn apply_positions(
        &self,
        mut plan: StartPlan,
        (topic, partition): &TopicPartition,
        found: &GroupOffset,
    ) -> Result<StartPlan, onceward::Error> {
        if let Some(change) = plan.reset {
            self.health.reset();
            tracing::warn!(
                topic = &**topic,
                partition,
                committed = found.committed,
                log_start = found.log_start,
                log_end = found.log_end,
                "{} since the group committed its offset; reading the log from its start",
                change.description()
            );
        }
        if let Some(stored) = self.stored {
            let number = u32::try_from(*partition).unwrap_or_default();
            let start = |log: &LogId| {
                stored.start_offset(&log.incarnation(self.cluster, topic).into(), number, found.log_end)
            };
            if plan.reset == Some(LogChange::Truncated) {
                let before = LogId { truncations: plan.log.truncations - 1, ..plan.log.clone() };
                if start(&before)?.is_some() {
                    return Err(truncation_error(topic, *partition));
                }
            }
            plan.from = start(&plan.log)?.or(plan.from);
        }
        if let Some(from) = plan.from.filter(|from| *from < found.log_start) {
            let (topic, partition) = (Arc::clone(topic), *partition);
            let gap = OffsetGap { topic, partition, from, to: found.log_start };
            gap.report(self.health, found.log_start);
            plan.from = Some(found.log_start);
        }
        Ok(plan)
    }
}

const OPERATION: &str = "resolve the start offsets of assigned partitions";

fn to_topic_partition(own: &TopicPartitionListElem<'_>) -> TopicPartition {
    (Arc::from(own.topic()), own.partition())
}

/// Fetches the current ids of the topics of `partitions`. Empty if the cluster does not answer within the timeout.
pub fn topic_ids<C: ClientContext>(
    client: &Client<C>,
    partitions: &TopicPartitionList,
    request_timeout: Duration,
) -> TopicIds {
    let topics: BTreeSet<_> = partitions.elements().iter().map(|own| own.topic().to_owned()).collect();
    if topics.is_empty() {
        return TopicIds::new();
    }
    let names: Vec<_> = topics.iter().map(String::as_str).collect();
    match native::try_describe_topics(client, &names, request_timeout) {
        Ok(described) => described.into_iter().flatten().map(|topic| (topic.name, topic.id)).collect(),
        Err(error) => {
            tracing::debug!(%error, "fetching the ids of topics failed");
            TopicIds::new()
        }
    }
}

/// Sets the metadata of a partition's offset in `list`.
pub fn set_metadata(list: &mut TopicPartitionList, topic: &str, partition: i32, metadata: &str) {
    if metadata.is_empty() {
        return;
    }
    if let Some(mut own) = list.find_partition(topic, partition) {
        own.set_metadata(metadata);
    }
}

/// Fetches the group's offsets and the extents of the logs. Partitions without a leader are absent.
fn fetch_offsets<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &TopicPartitionList,
    request_timeout: Duration,
) -> KafkaResult<HashMap<TopicPartition, GroupOffset>> {
    let mut requested = TopicPartitionList::with_capacity(partitions.count());
    let mut named = Vec::with_capacity(partitions.count());
    for own in partitions.elements() {
        requested.add_partition(own.topic(), own.partition());
        named.push(to_topic_partition(&own));
    }
    let committed = consumer.committed_offsets(requested, request_timeout)?;
    let low = native::log_edges(consumer.client(), &named, LogEdge::Low, request_timeout)?;
    let end = native::log_edges(consumer.client(), &named, LogEdge::High, request_timeout)?;
    let mut found = HashMap::with_capacity(named.len());
    for own in committed.elements() {
        own.error()?;
        let key = to_topic_partition(&own);
        let (Some(low), Some(end)) = (low.get(&key), end.get(&key)) else { continue };
        let committed = match own.offset() {
            Offset::Offset(offset) => u64::try_from(offset).ok(),
            _ => None,
        };
        let log = committed.and_then(|_| LogId::parse(own.metadata()));
        found.insert(key, GroupOffset { committed, log, log_start: *low, log_end: (*end).max(*low) });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(committed: Option<u64>, log: Option<(&str, u32)>) -> GroupOffset {
        let log = log.map(|(id, truncations)| LogId { topic_id: Some(id.into()), truncations });
        GroupOffset { committed, log, log_start: 5, log_end: 20 }
    }

    #[test]
    fn only_an_offset_of_this_log_is_valid() {
        let id = "new".to_owned();
        let plan = |found: &GroupOffset, from_end| {
            let plan = plan_start(found, Some(&id), from_end);
            (plan.from, plan.log.truncations, plan.reset)
        };
        assert_eq!(plan(&found(None, None), false), (None, 0, None));
        assert_eq!(plan(&found(None, None), true), (Some(20), 0, None));
        // Committed by another program, or an older version of this one.
        assert_eq!(plan(&found(Some(12), None), true), (Some(12), 0, None));
        assert_eq!(plan(&found(Some(20), Some(("new", 2))), true), (Some(20), 2, None));
        assert_eq!(plan(&found(Some(12), Some(("old", 2))), true), (Some(5), 0, Some(LogChange::Recreated)));
        assert_eq!(plan(&found(Some(21), Some(("new", 2))), true), (Some(5), 3, Some(LogChange::Truncated)));
        assert_eq!(plan(&found(Some(21), None), false), (Some(5), 1, Some(LogChange::Truncated)));
    }

    #[test]
    fn brokers_without_topic_ids_are_compared_by_the_offset_alone() {
        let plan = |found: &GroupOffset| plan_start(found, None, false).from;
        assert_eq!(plan(&found(Some(12), None)), Some(12));
        assert_eq!(plan(&found(Some(21), None)), Some(5));
    }
}
