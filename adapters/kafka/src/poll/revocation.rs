//! Gives partitions up that are being revoked, without stopping the others: [`Leaving`].
//!
//! The client waits with the rebalance until they are given up, and commits the others meanwhile, of which the buffer
//! has more. So the poll thread never waits for handlers. Until then librdkafka fetches nothing, of no partition.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, RebalanceProtocol};

use crate::poll::rebalance::{Hooked, commit};
use crate::state::Shared;

/// How long the last commit may take, and how often it is sent.
const LAST_COMMIT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(500);

/// Partitions that are being revoked.
#[derive(Clone, Debug)]
pub(crate) struct Leaving {
    pub(crate) partitions: Vec<(String, i32)>,
    /// Until when what runs is waited for.
    pub(crate) until: Instant,
    /// Since when the last commit is under way, and when it was sent last.
    committing: Option<(Instant, Instant)>,
}

impl Leaving {
    pub(crate) fn new(partitions: Vec<(String, i32)>, limit: Duration) -> Self {
        Self { partitions, until: Instant::now() + limit, committing: None }
    }
}

/// The next step of a revocation, if there is one.
pub(crate) fn advance<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, shared: &Shared) {
    let Some(leaving) = shared.lock().leaving.clone() else { return };
    if consumer.assignment_lost() {
        return finish(consumer, shared);
    }
    let now = Instant::now();
    let (since, sent) = match leaving.committing {
        None if !shared.are_drained(&leaving.partitions) && now < leaving.until => return,
        None => (now, None),
        Some((since, sent)) => (since, Some(sent)),
    };
    let last = shared.last_commits(&leaving.partitions);
    if last.is_empty() || now >= since + LAST_COMMIT {
        return finish(consumer, shared);
    }
    let is_due = sent.is_none_or(|sent| now >= sent + AGAIN && !shared.is_committing());
    if is_due {
        commit(consumer, &last, CommitMode::Async);
        if let Some(leaving) = &mut shared.lock().leaving {
            leaving.committing = Some((since, now));
        }
    }
}

/// Gives up at once what is being revoked, if there is something: commits what is settled, unless others have it already, or it
/// was sent and nobody answers: a commit that waits for its answer would stop this thread for as long as a session lasts.
pub(crate) fn finish<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, shared: &Shared) {
    let Some(leaving) = shared.lock().leaving.take() else { return };
    if leaving.committing.is_some() && shared.is_committing() {
        tracing::warn!(
            "the last commit of revoked partitions is not answered; what it tells of may be delivered again"
        );
        shared.forget(&leaving.partitions);
    } else {
        give_up(consumer, shared, &leaving.partitions);
    }
    let mut list = TopicPartitionList::with_capacity(leaving.partitions.len());
    for (topic, partition) in &leaving.partitions {
        list.add_partition(topic, *partition);
    }
    unassign(consumer, &list);
}

/// Commits what is settled of partitions that go, and forgets them.
pub(crate) fn give_up<C: ClientContext>(
    consumer: &BaseConsumer<Hooked<C>>,
    shared: &Shared,
    partitions: &[(String, i32)],
) {
    // Another member may have them already: a commit could undo its own.
    if consumer.assignment_lost() {
        tracing::warn!(
            count = partitions.len(),
            "partitions were lost to other members, or their topic is gone; nothing is committed for them"
        );
    } else {
        commit(consumer, &shared.last_commits(partitions), CommitMode::Sync);
    }
    shared.forget(partitions);
}

/// Reports to the client that partitions are given up.
pub(crate) fn unassign<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, list: &TopicPartitionList) {
    let given = match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
        _ => consumer.unassign(),
    };
    if let Err(error) = given {
        tracing::warn!(%error, "partitions cannot be given up; the client joins the group again");
    }
}
