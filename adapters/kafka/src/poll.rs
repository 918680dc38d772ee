//! The poll thread: takes records as there is room for them, commits, and keeps the membership alive while handlers run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::util::Timeout;
use rdkafka::{Offset, TopicPartitionList};

use crate::context::{Hooked, commit};
use crate::error;
use crate::shared::Shared;

/// How long one poll waits; bounds how late a stop, a commit or a question is seen.
const POLL: Duration = Duration::from_millis(20);
/// A short lack of room is waited for; a longer one pauses the partitions, which throws away what was fetched ahead.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long the broker may take to tell where a partition ends.
const ANSWER: Duration = Duration::from_secs(2);

/// Polls until it is told to stop or the client cannot go on. Dropping the consumer leaves the group.
pub(crate) fn run<C: ClientContext>(consumer: BaseConsumer<Hooked<C>>, shared: &Arc<Shared>) {
    let mut paused = false;
    let mut committed = Instant::now();
    while !shared.lock().stop {
        if std::mem::take(&mut shared.lock().reassigned) {
            // The client remembers that a partition was paused when it was taken away; when it comes back it would be paused
            // for ever. Whether to pause is decided again below.
            paused = !toggle(&consumer, false);
        }
        if paused {
            paused = !(shared.is_half_empty() && toggle(&consumer, false));
        } else if !shared.wait_for_room(PATIENCE) {
            paused = toggle(&consumer, true);
        }
        // One wait, then what is there already.
        let mut wait = Timeout::from(POLL);
        while let Some(polled) = consumer.poll(wait) {
            match polled {
                Ok(record) => shared.polled(&record),
                Err(error) => {
                    if ends(&consumer, error, shared) {
                        end(consumer, shared);
                        return;
                    }
                }
            }
            wait = Timeout::from(Duration::ZERO);
            if committed.elapsed() >= shared.topics.commit_interval || !shared.wait_for_room(Duration::ZERO) {
                break;
            }
        }
        if committed.elapsed() >= shared.topics.commit_interval {
            commit(&consumer, &shared.to_commit(), CommitMode::Async);
            committed = Instant::now();
        }
        answer(&consumer, shared);
    }
    end(consumer, shared);
}

/// Commits what is settled, leaves the group and says that it is over.
fn end<C: ClientContext>(consumer: BaseConsumer<Hooked<C>>, shared: &Shared) {
    shared.lock().stop = true;
    // Partitions are revoked while it is dropped: they are committed there, without a wait.
    drop(consumer);
    let left: Vec<_> =
        shared.positions().into_iter().map(|(topic, number, _)| (topic.to_string(), number)).collect();
    shared.forget(&left);
    let mut state = shared.lock();
    state.ended = true;
    state.idle_questions.clear();
    drop(state);
    shared.arrived.notify_waiters();
    shared.arrived.notify_one();
}

/// Pauses or resumes all partitions; false if the client refuses.
fn toggle<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, pause: bool) -> bool {
    let toggled = consumer.assignment().and_then(|assignment| match pause {
        true => consumer.pause(&assignment),
        false => consumer.resume(&assignment),
    });
    if let Err(error) = &toggled {
        tracing::warn!(%error, pause, "partitions cannot be paused or resumed; it is tried again");
    }
    toggled.is_ok()
}

/// Tells an error that a person must mend from one that the client gets over. True if the client cannot go on.
fn ends<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, error: KafkaError, shared: &Shared) -> bool {
    let operation = || format!("receive from topic {}", shared.topics.names.join(", "));
    let fatal =
        matches!(error, KafkaError::MessageConsumptionFatal(_)) || consumer.client().fatal_error().is_some();
    let code = error.rdkafka_error_code();
    match code {
        _ if fatal => shared.report(
            onceward::Error::new(
                onceward::ErrorKind::Internal,
                operation(),
                "the client cannot go on; the cause says why",
            )
            .with_source(error),
        ),
        Some(
            Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::OffsetOutOfRange
            | Code::AutoOffsetReset
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopic,
        ) => shared.report(error::kafka(operation(), error)),
        _ => tracing::warn!(%error, "the client reports an error and goes on"),
    }
    fatal
}

/// Answers whether there is nothing to deliver: each partition was polled to its end.
fn answer<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, shared: &Shared) {
    let (questions, joined) = {
        let mut state = shared.lock();
        (std::mem::take(&mut state.idle_questions), state.joined)
    };
    if questions.is_empty() {
        return;
    }
    let idle = match joined && shared.nothing_waits() {
        true => is_at_end(consumer, shared),
        false => Some(false),
    };
    for question in questions {
        // The one who asked may be gone.
        let _ = question.send(idle);
    }
}

fn is_at_end<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, shared: &Shared) -> Option<bool> {
    for (topic, partition, next) in shared.positions() {
        let (low, high) = consumer.fetch_watermarks(&topic, partition, ANSWER).ok()?;
        let next = match next {
            Some(next) => i64::try_from(next).ok()?,
            None => {
                let mut list = TopicPartitionList::new();
                list.add_partition(&topic, partition);
                let committed = consumer.committed_offsets(list, ANSWER).ok()?;
                match committed.find_partition(&topic, partition)?.offset() {
                    Offset::Offset(offset) => offset,
                    _ => low,
                }
            }
        };
        if next < high {
            return Some(false);
        }
    }
    Some(true)
}
