//! The poll thread: takes records as there is room for them, commits, and keeps the membership alive while handlers run.

pub(crate) mod log_reset;
pub(crate) mod pending;
pub(crate) mod probe;
pub(crate) mod read_ahead;
pub(crate) mod rebalance;
pub(crate) mod revocation;
pub(crate) mod stalls;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::util::Timeout;

use crate::auth::failures::Refused;
use crate::error;
use crate::poll::log_reset as reset;
use crate::poll::read_ahead::Burst;
use crate::poll::rebalance::{Hooked, commit};
use crate::poll::revocation as leaving;
use crate::poll::stalls::{Verdict, Watch};
use crate::retention;
use crate::state::Shared;

/// How long one poll waits; bounds how late a stop, a commit or a question is seen.
const POLL: Duration = Duration::from_millis(20);
/// How long the coordinator may take to describe the group.
const GROUP: Duration = Duration::from_secs(2);
/// A short lack of room is waited for; a longer one pauses the partitions, which throws away what was fetched ahead.
const PATIENCE: Duration = Duration::from_millis(200);

/// How a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// For good: it was told to, or cannot go on.
    Over,
    /// Another one is to take its place.
    Stalled,
}

/// Polls until it is told to stop or the client cannot go on. A client that has stalled is dropped, which leaves the group,
/// and made anew.
pub(crate) fn run<C: ClientContext>(
    mut consumer: BaseConsumer<Hooked<C>>,
    make: impl Fn() -> Result<BaseConsumer<Hooked<C>>, onceward::Error>,
    mut watch: Watch<C>,
    shared: &Arc<Shared>,
) {
    while poll(&consumer, &mut watch, shared) == End::Stalled {
        leaving::finish(&consumer, shared);
        shared.lock().closing = true;
        drop(consumer);
        shared.forget_all();
        shared.lock().closing = false;
        consumer = match make() {
            Ok(consumer) => consumer,
            Err(error) => {
                shared.report(error);
                return ended(shared);
            }
        };
    }
    {
        let mut state = shared.lock();
        (state.stop, state.closing) = (true, true);
    }
    leaving::finish(&consumer, shared);
    // Partitions are revoked while it is dropped: they are committed there, without a wait.
    drop(consumer);
    ended(shared);
}

/// Nothing is delivered any more: says so.
fn ended(shared: &Shared) {
    shared.forget_all();
    let mut state = shared.lock();
    state.stop = true;
    state.ended = true;
    state.idle_questions.clear();
    state.notices = None;
    drop(state);
    shared.change();
    shared.arrived.notify_waiters();
    shared.arrived.notify_one();
}

fn poll<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, watch: &mut Watch<C>, shared: &Shared) -> End {
    let mut paused = false;
    let mut held = HashSet::new();
    let mut burst = Burst::default();
    let mut committed = Instant::now();
    let mut refused = Refused::default();
    let mut renewal = consumer.context().renewal();
    while !shared.lock().stop {
        renewal.look(consumer.client());
        if std::mem::take(&mut shared.lock().reassigned) {
            // The client remembers that a partition was paused when it was taken away; when it comes back it would be paused
            // for ever. Whether to pause is decided again below.
            paused = !toggle(consumer, false, &held);
        }
        if paused {
            paused = !(shared.is_half_empty() && toggle(consumer, false, &held));
        } else if !shared.wait_for_room(PATIENCE) {
            paused = toggle(consumer, true, &held);
        }
        hold_back(consumer, shared, &mut held, paused);
        leaving::advance(consumer, shared);
        if !pending::advance(consumer, shared) || !reset::apply(consumer, shared) {
            return End::Over;
        }
        #[cfg(test)]
        if std::mem::take(&mut shared.lock().sabotaged) {
            toggle(consumer, true, &held);
        }
        // One wait, then what is there already.
        let mut wait = Timeout::from(POLL);
        while let Some(polled) = consumer.poll(wait) {
            match polled {
                Ok(record) if burst.read(shared, &record) => {}
                // The rest of its partition has to be held back first.
                Ok(_) => break,
                Err(error) => {
                    if ends(consumer, error, shared, &mut refused) {
                        return End::Over;
                    }
                    break;
                }
            }
            wait = Timeout::from(Duration::ZERO);
            if burst.is_full(shared) {
                shared.polled(&mut burst);
                let is_due = committed.elapsed() >= shared.topics.commit_interval;
                if is_due || shared.lock().flow_changed || !shared.wait_for_room(Duration::ZERO) {
                    break;
                }
            }
        }
        shared.polled(&mut burst);
        retention::count(consumer, shared);
        if committed.elapsed() >= shared.topics.commit_interval && !shared.is_committing() {
            commit(consumer, &shared.to_commit(), CommitMode::Async);
            committed = Instant::now();
        }
        answer(consumer, shared, watch);
        if !paused && shared.nothing_waits() && watch.look(consumer, shared) == Verdict::Stalled {
            tracing::error!("the client has stalled; it is made anew");
            return End::Stalled;
        }
    }
    End::Over
}

type Partitions = HashSet<(Arc<str>, i32)>;

/// Holds back the partitions of which nothing is wanted for a while, and lets go of those whose time has come.
fn hold_back<C: ClientContext>(
    consumer: &BaseConsumer<Hooked<C>>,
    shared: &Shared,
    held: &mut Partitions,
    paused: bool,
) {
    shared.lock().flow_changed = false;
    let waiting = shared.waiting();
    let list = |partitions: &mut dyn Iterator<Item = &(Arc<str>, i32)>| {
        let mut list = TopicPartitionList::new();
        for (topic, number) in partitions {
            list.add_partition(topic, *number);
        }
        list
    };
    if waiting == *held {
        return;
    }
    let (hold, release) = (list(&mut waiting.difference(held)), list(&mut held.difference(&waiting)));
    let mut changed = Ok(());
    if hold.count() > 0 {
        changed = consumer.pause(&hold);
    }
    // Those that are paused with all others go on with them.
    if release.count() > 0 && !paused {
        changed = changed.and(consumer.resume(&release));
    }
    match changed {
        Ok(()) => *held = waiting,
        Err(error) => tracing::debug!(%error, "partitions cannot be held back; it is tried again"),
    }
}

/// Pauses or resumes all partitions but those that are held; false if the client refuses.
fn toggle<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, pause: bool, held: &Partitions) -> bool {
    let toggled = consumer.assignment().and_then(|assignment| {
        let mut list = TopicPartitionList::new();
        for own in assignment.elements() {
            if !held.contains(&(Arc::from(own.topic()), own.partition())) {
                list.add_partition(own.topic(), own.partition());
            }
        }
        match pause {
            true => consumer.pause(&list),
            false => consumer.resume(&list),
        }
    });
    if let Err(error) = &toggled {
        tracing::warn!(%error, pause, "partitions cannot be paused or resumed; it is tried again");
    }
    toggled.is_ok()
}

/// Tells an error that a person must mend from one that the client gets over. True if the client cannot go on.
fn ends<C: ClientContext>(
    consumer: &BaseConsumer<Hooked<C>>,
    error: KafkaError,
    shared: &Shared,
    refused: &mut Refused,
) -> bool {
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
        _ if error::is_login(&error) && !refused.goes_on(Instant::now()) => {
            tracing::warn!(%error, "the broker refuses the credentials, or no token was to be had; it is tried again");
        }
        // The overseer says so, and the others go on.
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
            tracing::debug!(%error, "a topic does not exist");
            shared.lock().doubts = true;
            shared.asked.notify_all();
        }
        Some(Code::InconsistentGroupProtocol) => other_protocol(consumer, shared),
        Some(
            Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::OffsetOutOfRange
            | Code::AutoOffsetReset,
        ) => shared.report(error::kafka(operation(), error)),
        _ => tracing::warn!(%error, "the client reports an error and goes on"),
    }
    fatal
}

/// The group's members use another way to assign partitions; the member waits outside until they are gone.
fn other_protocol<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, shared: &Shared) {
    let group = consumer.context().group.as_str();
    let used = consumer.fetch_group_list(Some(group), GROUP).ok().and_then(|groups| {
        let own = groups.groups().iter().find(|own| own.name() == group)?;
        (!own.protocol().is_empty()).then(|| own.protocol().to_owned())
    });
    let used = used.map_or("another one".to_owned(), |used| format!("{used:?}"));
    let reason = format!(
        "group {group} cannot be joined: its members use partition.assignment.strategy {used}, and this one {:?}; set the same in \
         the properties, or stop the other members first",
        consumer.context().strategy
    );
    if shared.health.set_down(reason.clone()) {
        tracing::error!("{reason}");
    }
    shared.lock().trouble = Some(reason);
}

/// Answers whether there is nothing to deliver: each partition was polled to its end.
fn answer<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, shared: &Shared, watch: &mut Watch<C>) {
    let questions = std::mem::take(&mut shared.lock().idle_questions);
    if questions.is_empty() {
        return;
    }
    let idle = match shared.is_settled() {
        true => watch.is_at_end(consumer, shared),
        false => Some(false),
    };
    for question in questions {
        // The one who asked may be gone.
        let _ = question.send(idle);
    }
}
