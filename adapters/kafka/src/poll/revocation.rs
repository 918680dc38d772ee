//! Gives up revoked partitions without stopping the others.
//!
//! A rebalance continues only after the revoked partitions are given up. Until then librdkafka fetches nothing, of any
//! partition; the others are delivered from the buffer and committed. The poll thread never waits for handlers.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};

use crate::handle::Handle;
use crate::poll::commit::send_commit;
use crate::state::partition::TopicPartition;

/// How long the final commit may take, and how often it is sent.
const FINAL_COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
const FINAL_COMMIT_INTERVAL: Duration = Duration::from_millis(500);

/// Takes the next step of a revocation, if one is in progress.
pub(super) fn advance<C: ConsumerContext>(consumer: &BaseConsumer<C>, handle: &Handle) {
    let Some(revocation) = handle.with(|state| state.revocation.clone()) else { return };
    if consumer.assignment_lost() {
        return finish(consumer, handle);
    }
    let now = Instant::now();
    let is_drained = handle.with(|state| state.are_drained(&revocation.partitions));
    let (since, sent) = match revocation.final_commit {
        None if !is_drained && now < revocation.deadline => return,
        None => (now, None),
        Some((since, sent)) => (since, Some(sent)),
    };
    let offsets = handle.with(|state| state.final_commits(&revocation.partitions));
    if offsets.is_empty() || now >= since + FINAL_COMMIT_TIMEOUT {
        return finish(consumer, handle);
    }
    let is_committing = handle.with(|state| state.is_committing(now));
    if sent.is_none_or(|sent| now >= sent + FINAL_COMMIT_INTERVAL && !is_committing) {
        send_commit(consumer, handle, &offsets, CommitMode::Async);
        handle.with(|state| {
            if let Some(revocation) = &mut state.revocation {
                revocation.final_commit = Some((since, now));
            }
        });
    }
}

/// Ends a revocation in progress at once: commits settled offsets and gives the partitions up. Nothing is committed if the
/// partitions are lost, or if the final commit was sent and is not answered: a synchronous commit without a coordinator would
/// block this thread for as long as a session lasts.
pub(super) fn finish<C: ConsumerContext>(consumer: &BaseConsumer<C>, handle: &Handle) {
    let Some(revocation) = handle.with(|state| state.revocation.take()) else { return };
    let is_committing = handle.with(|state| state.is_committing(Instant::now()));
    if revocation.final_commit.is_some() && is_committing {
        tracing::warn!("final commit of revoked partitions not answered; records may be redelivered");
        handle.with(|state| state.forget(&revocation.partitions));
    } else {
        give_up(consumer, handle, &revocation.partitions);
    }
    let mut list = TopicPartitionList::with_capacity(revocation.partitions.len());
    for (topic, partition) in &revocation.partitions {
        list.add_partition(topic, *partition);
    }
    unassign(consumer, &list);
}

/// Commits the settled offsets of partitions that leave, and forgets the partitions.
pub(super) fn give_up<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    handle: &Handle,
    partitions: &[TopicPartition],
) {
    // Another member may own them already: a commit could undo its commits.
    if consumer.assignment_lost() {
        tracing::warn!(
            count = partitions.len(),
            "partitions lost to other members, or their topic was deleted; nothing is committed for them"
        );
    } else {
        let offsets = handle.with(|state| state.final_commits(partitions));
        send_commit(consumer, handle, &offsets, CommitMode::Sync);
    }
    handle.with(|state| state.forget(partitions));
}

/// Unassigns revoked partitions in the client.
pub(super) fn unassign<C: ConsumerContext>(consumer: &BaseConsumer<C>, list: &TopicPartitionList) {
    let unassigned = match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
        _ => consumer.unassign(),
    };
    if let Err(error) = unassigned {
        tracing::warn!(%error, "giving up partitions failed; the client rejoins the group");
    }
}
