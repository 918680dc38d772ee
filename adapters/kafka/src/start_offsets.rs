//! Where assigned partitions begin: the group's offset is compared with the log before anything is read. [`begin`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use onceward::telemetry::SourceHealth;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use crate::client::native::{self, Edge};
use crate::log_id::Stamp;
use crate::poll::log_reset::{self as reset, Kind};
use crate::retention::{Gap, report};
use crate::state::assignment::Begin;

/// How long the cluster may take to answer one question during a rebalance.
pub const ANSWER: Duration = Duration::from_secs(5);

/// Says where a partition starts when it is assigned, if not where the group has committed.
pub trait Starts: Send + Sync + 'static {
    /// The offset of the first record wanted; `None` to start where the group has committed. The log ends at `end`. It may
    /// block: the poll thread waits.
    ///
    /// # Errors
    /// The partition must not be consumed.
    fn start(&self, incarnation: &Arc<str>, partition: u32, end: u64)
    -> Result<Option<u64>, onceward::Error>;
}

/// How the beginnings of partitions are found.
pub struct Beginner<'a> {
    pub cluster: &'a str,
    /// The topics' ids, as the cluster reports them now: [`ids`].
    pub ids: &'a Ids,
    /// A partition without an offset of the group's starts at its end.
    pub from_end: bool,
    pub starts: Option<&'a dyn Starts>,
    pub health: &'a SourceHealth,
    /// How long the cluster may take to answer one question.
    pub answer: Duration,
}

/// The ids of topics; `None` from brokers older than 2.8. A topic that the cluster does not report is absent.
pub type Ids = HashMap<String, Option<String>>;

/// Where partitions begin.
#[derive(Debug, Default)]
pub struct Begun {
    pub begins: Vec<Begin>,
    /// Partitions whose start offset is unknown now: they have no leader, or the cluster does not answer. They must not be read.
    pub pending: Vec<(String, i32)>,
    /// Why not, as far as that is known.
    pub reason: Option<KafkaError>,
}

impl Begun {
    /// Nothing is known of any of `partitions`.
    fn nothing(partitions: &TopicPartitionList, reason: KafkaError) -> Self {
        let named = |own: &TopicPartitionListElem<'_>| (own.topic().to_owned(), own.partition());
        let pending = partitions.elements().iter().map(named).collect();
        Self { begins: Vec::new(), pending, reason: Some(reason) }
    }
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
    // A broker that knows no ids, of a cluster whose others do, does not make the log another one.
    let stamp = Stamp { id: present.id.or(old.id), cuts: old.cuts };
    if committed > found.end {
        let stamp = Stamp { cuts: stamp.cuts + 1, ..stamp };
        return Plan { stamp, from: Some(found.low), reset: Some(Kind::Truncated) };
    }
    Plan { stamp, from: Some(committed), reset: None }
}

impl Beginner<'_> {
    /// Where each of `partitions` begins. Where that is not what the group has committed it is committed, before anything is
    /// read: whoever has the partition next must not go on with an offset of another log. Also for partitions without an offset
    /// that start at the end: otherwise what comes before the first commit would be skipped by the next member, if this one died.
    ///
    /// # Errors
    /// A partition must not be consumed.
    pub fn begin<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        partitions: &TopicPartitionList,
    ) -> Result<Begun, onceward::Error> {
        if partitions.count() == 0 {
            return Ok(Begun::default());
        }
        let found = match look(consumer, partitions, self.answer) {
            Ok(found) => found,
            Err(error) => return Ok(Begun::nothing(partitions, error)),
        };
        let mut begun = Begun::default();
        let mut corrected = TopicPartitionList::new();
        let mut news = Vec::new();
        for own in partitions.elements() {
            let key = (own.topic().to_owned(), own.partition());
            let (Some(id), Some(found)) = (self.ids.get(&key.0), found.get(&key)) else {
                begun.pending.push(key);
                continue;
            };
            let plan = self.checked(plan(found, id.as_ref(), self.from_end), &key, found)?;
            if let Some(from) = plan.from.filter(|from| found.committed != Some(*from)) {
                let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
                corrected.add_partition_offset(&key.0, key.1, offset).map_err(failed)?;
                stamp(&mut corrected, &key.0, key.1, &plan.stamp.to_string());
                news.push(key.clone());
            }
            let by_policy = plan.from.is_none();
            let from = plan.from.or(Some(found.low));
            begun.begins.push(Begin { topic: key.0, partition: key.1, stamp: plan.stamp, from, by_policy });
        }
        if corrected.count() > 0
            && let Err(error) = consumer.commit(&corrected, CommitMode::Sync)
        {
            begun.begins.retain(|own| !news.iter().any(|(topic, number)| own.is(topic, *number)));
            begun.pending.append(&mut news);
            begun.reason = Some(error);
        }
        Ok(begun)
    }

    /// `plan` with what the owner of positions and the log say of it. What it finds is counted.
    fn checked(
        &self,
        mut plan: Plan,
        (topic, partition): &(String, i32),
        found: &Found,
    ) -> Result<Plan, onceward::Error> {
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
            let number = u32::try_from(*partition).unwrap_or_default();
            let start = |stamp: &Stamp| {
                starts.start(&stamp.incarnation(self.cluster, topic).into(), number, found.end)
            };
            if plan.reset == Some(Kind::Truncated) {
                let before = Stamp { cuts: plan.stamp.cuts - 1, ..plan.stamp.clone() };
                if start(&before)?.is_some() {
                    return Err(reset::truncated(topic, *partition));
                }
            }
            plan.from = start(&plan.stamp)?.or(plan.from);
        }
        if let Some(from) = plan.from.filter(|from| *from < found.low) {
            let gap = Gap { topic: topic.as_str().into(), partition: *partition, from, to: found.low };
            report(self.health, &gap, found.low);
            plan.from = Some(found.low);
        }
        Ok(plan)
    }
}

/// The ids of these topics, as the cluster reports them now.
pub fn ids<C: ClientContext>(client: &Client<C>, partitions: &TopicPartitionList, answer: Duration) -> Ids {
    let topics: BTreeSet<_> = partitions.elements().iter().map(|own| own.topic().to_owned()).collect();
    if topics.is_empty() {
        return Ids::new();
    }
    let names: Vec<_> = topics.iter().map(String::as_str).collect();
    match native::describe_each(client, &names, answer) {
        Ok(told) => told.into_iter().flatten().map(|topic| (topic.name, topic.id)).collect(),
        Err(error) => {
            tracing::debug!(%error, "the cluster does not report the ids of the topics");
            Ids::new()
        }
    }
}

fn failed(error: KafkaError) -> onceward::Error {
    crate::error::kafka("find where assigned partitions begin", error)
}

/// Writes a stamp beside the offset of a partition in `list`.
pub fn stamp(list: &mut TopicPartitionList, topic: &str, partition: i32, stamp: &str) {
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
    answer: Duration,
) -> KafkaResult<HashMap<(String, i32), Found>> {
    let mut asked = TopicPartitionList::with_capacity(partitions.count());
    let mut named = Vec::with_capacity(partitions.count());
    for own in partitions.elements() {
        asked.add_partition(own.topic(), own.partition());
        named.push((Arc::<str>::from(own.topic()), own.partition()));
    }
    let committed = consumer.committed_offsets(asked, answer)?;
    let low = native::edges(consumer.client(), &named, Edge::Low, answer)?;
    let end = native::edges(consumer.client(), &named, Edge::High, answer)?;
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
