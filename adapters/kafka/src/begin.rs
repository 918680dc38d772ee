//! Where assigned partitions begin: the group's offset is compared with the log before anything is read. [`begin`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use onceward::telemetry::SourceHealth;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use crate::assignment::Begin;
use crate::native::{self, Edge};
use crate::reset::Kind;
use crate::retention::{Gap, report};
use crate::stamp::Stamp;

/// How long the cluster may take to answer one question during a rebalance.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
/// How often it is asked.
const TRIES: u32 = 3;
const BREATH: Duration = Duration::from_millis(200);

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

/// How the beginnings of partitions are found.
pub(crate) struct Beginner<'a> {
    pub(crate) cluster: &'a str,
    /// The topics' ids, as far as they are known.
    pub(crate) ids: &'a HashMap<String, String>,
    /// A partition without an offset of the group's starts at its end.
    pub(crate) from_end: bool,
    pub(crate) starts: Option<&'a dyn Starts>,
    pub(crate) health: &'a SourceHealth,
}

/// A partition of which the group has an offset, or none, and its log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    committed: Option<u64>,
    /// Of the committed offset; `None` if it has none.
    stamp: Option<Stamp>,
    low: u64,
    end: u64,
}

/// What follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    stamp: Stamp,
    /// The first offset that is wanted; `None` for the beginning of the log.
    from: Option<u64>,
    /// The group's offset is of another log.
    reset: Option<Kind>,
}

/// What is to be read of a partition whose topic has the id `id`. A committed offset of another topic, or behind the end of the
/// log, says nothing: then all of the log is new.
fn plan(found: &Found, id: Option<&String>, from_end: bool) -> Plan {
    let present = Stamp { id: id.cloned(), cuts: 0 };
    let Some(committed) = found.committed else {
        return Plan { stamp: present, from: from_end.then_some(found.end), reset: None };
    };
    let old = found.stamp.clone().unwrap_or_else(|| present.clone());
    if id.is_some() && old.id != present.id {
        return Plan { stamp: present, from: Some(found.low), reset: Some(Kind::Recreated) };
    }
    let stamp = Stamp { cuts: old.cuts, ..present };
    if committed > found.end {
        let stamp = Stamp { cuts: stamp.cuts + 1, ..stamp };
        return Plan { stamp, from: Some(found.low), reset: Some(Kind::Truncated) };
    }
    Plan { stamp, from: Some(committed), reset: None }
}

impl Beginner<'_> {
    /// Where each of `partitions` begins. Where that is not what the group has committed it is committed: the client reads
    /// that next. Also for partitions without an offset that start at the end: otherwise what comes before the first commit
    /// would be skipped by the next member, if this one died.
    ///
    /// # Errors
    /// The cluster does not answer, or a partition must not be consumed.
    pub(crate) fn begin<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        partitions: &TopicPartitionList,
    ) -> Result<Vec<Begin>, onceward::Error> {
        if partitions.count() == 0 {
            return Ok(Vec::new());
        }
        let mut tries = 1;
        let found = loop {
            match look(consumer, partitions) {
                Ok(found) => break found,
                Err(error) if tries < TRIES => {
                    tracing::debug!(%error, "the beginnings of partitions cannot be looked at yet");
                    std::thread::sleep(BREATH * tries);
                    tries += 1;
                }
                Err(error) => return Err(failed(error)),
            }
        };
        let mut begins = Vec::with_capacity(partitions.count());
        let mut corrected = TopicPartitionList::new();
        for own in partitions.elements() {
            let (topic, partition) = (own.topic(), own.partition());
            let id = self.ids.get(topic);
            let Some(found) = found.get(&(topic.to_owned(), partition)) else {
                if self.starts.is_some() {
                    return Err(failed(KafkaError::MetadataFetch(Code::LeaderNotAvailable)));
                }
                // It has no leader at this moment. The overseer looks at it later.
                let stamp = Stamp { id: id.cloned(), cuts: 0 };
                begins.push(Begin { topic: topic.to_owned(), partition, stamp, from: None });
                continue;
            };
            let mut plan = plan(found, id, self.from_end);
            if let Some(kind) = plan.reset {
                self.health.reset();
                tracing::warn!(
                    topic,
                    partition,
                    committed = found.committed,
                    log_start = found.low,
                    log_end = found.end,
                    "the {} since the group committed its offset: the log is read from the start",
                    kind.what()
                );
            }
            if let Some(starts) = self.starts {
                let incarnation = plan.stamp.incarnation(self.cluster, topic).into();
                let number = u32::try_from(partition).unwrap_or_default();
                plan.from = starts.start(&incarnation, number, found.end)?.or(plan.from);
            }
            if let Some(from) = plan.from.filter(|from| *from < found.low) {
                let gap = Gap { topic: topic.into(), partition, from, to: found.low };
                report(self.health, &gap, found.low);
                plan.from = Some(found.low);
            }
            if let Some(from) = plan.from.filter(|from| found.committed != Some(*from)) {
                let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
                corrected.add_partition_offset(topic, partition, offset).map_err(failed)?;
                stamp(&mut corrected, topic, partition, &plan.stamp.to_string());
            }
            let from = plan.from.or(Some(found.low));
            begins.push(Begin { topic: topic.to_owned(), partition, stamp: plan.stamp, from });
        }
        match corrected.count() {
            0 => Ok(begins),
            _ => consumer.commit(&corrected, CommitMode::Sync).map_err(failed).map(|()| begins),
        }
    }
}

fn failed(error: KafkaError) -> onceward::Error {
    crate::error::kafka("find where assigned partitions begin", error)
}

/// Writes a stamp beside the offset of a partition in `list`.
pub(crate) fn stamp(list: &mut TopicPartitionList, topic: &str, partition: i32, stamp: &str) {
    if stamp.is_empty() {
        return;
    }
    if let Some(mut own) = list.find_partition(topic, partition) {
        own.set_metadata(stamp);
    }
}

/// The group's offsets and the logs; without those that have no leader.
fn look<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &TopicPartitionList,
) -> KafkaResult<HashMap<(String, i32), Found>> {
    let mut asked = TopicPartitionList::with_capacity(partitions.count());
    let mut named = Vec::with_capacity(partitions.count());
    for own in partitions.elements() {
        asked.add_partition(own.topic(), own.partition());
        named.push((Arc::<str>::from(own.topic()), own.partition()));
    }
    let committed = consumer.committed_offsets(asked, ANSWER)?;
    let low = native::edges(consumer.client(), &named, Edge::Low, ANSWER)?;
    let end = native::edges(consumer.client(), &named, Edge::High, ANSWER)?;
    let mut found = HashMap::with_capacity(named.len());
    for own in committed.elements() {
        own.error()?;
        let key = (Arc::<str>::from(own.topic()), own.partition());
        let (Some(low), Some(end)) = (low.get(&key), end.get(&key)) else { continue };
        let committed = match own.offset() {
            Offset::Offset(offset) => u64::try_from(offset).ok(),
            _ => None,
        };
        let stamp = committed.and_then(|_| Stamp::read(own.metadata()));
        let one = Found { committed, stamp, low: *low, end: (*end).max(*low) };
        found.insert((own.topic().to_owned(), own.partition()), one);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(committed: Option<u64>, stamp: Option<(&str, u32)>) -> Found {
        let stamp = stamp.map(|(id, cuts)| Stamp { id: Some(id.into()), cuts });
        Found { committed, stamp, low: 5, end: 20 }
    }

    #[test]
    fn only_an_offset_of_this_log_counts() {
        let id = "new".to_owned();
        let plan = |found: &Found, from_end| {
            let plan = plan(found, Some(&id), from_end);
            (plan.from, plan.stamp.cuts, plan.reset)
        };
        assert_eq!(plan(&found(None, None), false), (None, 0, None));
        assert_eq!(plan(&found(None, None), true), (Some(20), 0, None));
        // Committed by another program, or an older version of this one.
        assert_eq!(plan(&found(Some(12), None), true), (Some(12), 0, None));
        assert_eq!(plan(&found(Some(20), Some(("new", 2))), true), (Some(20), 2, None));
        assert_eq!(plan(&found(Some(12), Some(("old", 2))), true), (Some(5), 0, Some(Kind::Recreated)));
        assert_eq!(plan(&found(Some(21), Some(("new", 2))), true), (Some(5), 3, Some(Kind::Truncated)));
        assert_eq!(plan(&found(Some(21), None), false), (Some(5), 1, Some(Kind::Truncated)));
    }

    #[test]
    fn brokers_without_topic_ids_are_compared_by_the_offset_alone() {
        let plan = |found: &Found| plan(found, None, false).from;
        assert_eq!(plan(&found(Some(12), None)), Some(12));
        assert_eq!(plan(&found(Some(21), None)), Some(5));
    }
}
