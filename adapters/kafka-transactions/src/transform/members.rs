//! The context of a transform's consumer: which partitions it has. It never commits; transactions do.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use onceward::Error;
use onceward::telemetry::SourceHealth;
use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use onceward_kafka::internal::Begin;
use onceward_kafka::internal::Stamp;
use onceward_kafka::internal::Traced;
use onceward_kafka::internal::error;
use onceward_kafka::internal::{self as begin, Beginner, Ids};

/// How long the cluster may take to tell where partitions begin, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(10);
const BREATH: Duration = Duration::from_millis(200);

/// The partitions that are assigned now; each assignment has a number of its own.
#[derive(Default)]
pub(super) struct Members {
    /// A group without an offset starts at the end.
    from_end: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    epochs: HashMap<(String, i32), u64>,
    last: u64,
    ids: HashMap<String, String>,
    stamps: HashMap<(String, i32), Stamp>,
    /// A partition must not be consumed.
    error: Option<Error>,
}

impl Members {
    pub(super) fn new(from_end: bool) -> Self {
        Self { from_end, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a partition's assignment; `None` if it is not ours.
    pub(super) fn epoch(&self, topic: &str, partition: i32) -> Option<u64> {
        self.lock().epochs.get(&(topic.to_owned(), partition)).copied()
    }

    /// It grows with each assignment.
    pub(super) fn last_epoch(&self) -> u64 {
        self.lock().last
    }

    /// Which log the offsets of a partition count in.
    pub(super) fn stamp(&self, topic: &str, partition: i32) -> Stamp {
        self.lock().stamps.get(&(topic.to_owned(), partition)).cloned().unwrap_or_default()
    }

    /// Why nothing more must be consumed.
    pub(super) fn take_error(&self) -> Option<Error> {
        self.lock().error.take()
    }

    /// The topics of which partitions are assigned, each with the id that it had then.
    pub(super) fn ids(&self) -> Vec<(String, String)> {
        let state = self.lock();
        let topics: BTreeSet<_> = state.epochs.keys().map(|(topic, _)| topic).collect();
        topics.into_iter().filter_map(|topic| Some((topic.clone(), state.ids.get(topic)?.clone()))).collect()
    }

    /// Where these partitions begin, and the ids of their topics.
    fn begin(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> (Result<Vec<Begin>, Error>, Ids) {
        let until = Instant::now() + PATIENCE;
        loop {
            let ids = begin::ids(consumer.client(), partitions, begin::ANSWER);
            let beginner = Beginner {
                cluster: "",
                ids: &ids,
                from_end: self.from_end,
                starts: None,
                health: &SourceHealth::default(),
                answer: begin::ANSWER,
            };
            match beginner.begin(consumer, partitions) {
                Ok(begun) if begun.pending.is_empty() => return (Ok(begun.begins), ids),
                Ok(begun) if Instant::now() >= until => {
                    let reason = begun.reason.unwrap_or(KafkaError::MetadataFetch(Code::LeaderNotAvailable));
                    return (Err(error::kafka("find where assigned partitions begin", reason)), ids);
                }
                Ok(_) => std::thread::sleep(BREATH),
                Err(error) => return (Err(error), ids),
            }
        }
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let (begun, ids) = self.begin(consumer, partitions);
        let mut state = self.lock();
        state.ids.extend(ids.into_iter().filter_map(|(topic, id)| Some((topic, id?))));
        match begun {
            Ok(begins) => {
                state.stamps.extend(begins.into_iter().map(|own| ((own.topic, own.partition), own.stamp)));
            }
            // Where they begin must be known.
            Err(error) => state.error = Some(error),
        }
        for own in partitions.elements() {
            state.last += 1;
            let epoch = state.last;
            state.epochs.insert((own.topic().to_owned(), own.partition()), epoch);
        }
    }
}

impl ClientContext for Members {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        Traced.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Traced.error(error, reason);
    }
}

impl ConsumerContext for Members {
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
                tracing::warn!(%error, "a rebalance failed; the client joins again");
            }
        }
    }

    fn main_queue_min_poll_interval(&self) -> rdkafka::util::Timeout {
        Duration::from_millis(100).into()
    }
}
