//! The context of a transform's consumer: which partitions it has. It never commits; transactions do.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;

use crate::log::Traced;
use crate::native;

/// How long the cluster may take to tell the ids of topics.
const ANSWER: Duration = Duration::from_secs(5);

/// The partitions that are assigned now; each assignment has a number of its own.
#[derive(Default)]
pub(super) struct Members {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    epochs: HashMap<(String, i32), u64>,
    last: u64,
    ids: HashMap<String, String>,
}

impl Members {
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

    /// The id of a topic, or its name where brokers have none.
    pub(super) fn id(&self, topic: &str) -> String {
        self.lock().ids.get(topic).cloned().unwrap_or_else(|| topic.to_owned())
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
            Rebalance::Assign(partitions) => {
                let topics: std::collections::BTreeSet<_> =
                    partitions.elements().iter().map(|own| own.topic().to_owned()).collect();
                let names: Vec<_> = topics.iter().map(String::as_str).collect();
                let described = match names.is_empty() {
                    true => Ok(Vec::new()),
                    false => native::describe(consumer.client(), &names, ANSWER),
                };
                let mut state = self.lock();
                match described {
                    Ok(topics) => {
                        state
                            .ids
                            .extend(topics.into_iter().filter_map(|topic| Some((topic.name, topic.id?))));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the cluster does not tell the ids of the topics; those known are used");
                    }
                }
                for own in partitions.elements() {
                    state.last += 1;
                    let epoch = state.last;
                    state.epochs.insert((own.topic().to_owned(), own.partition()), epoch);
                }
            }
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
