//! The claims and deliveries that the heartbeat keeps alive: [`KeptAlive`].

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::work::Start;
use crate::active_claim::ActiveClaim;
use crate::tag::Tag;

/// The claims and deliveries that are kept alive. Rounds enter whole, so that a message costs a push; those that end
/// within a third of their lease are never looked at singly.
#[derive(Debug, Default)]
pub(crate) struct KeptAlive {
    rounds: Mutex<Vec<Vec<Arc<ActiveClaim>>>>,
    held: Mutex<BTreeMap<Tag, Instant>>,
}

impl KeptAlive {
    /// Keeps the claims of a round alive until their runs end.
    pub(crate) fn watch(&self, starts: &[Start]) {
        let claims: Vec<_> = starts
            .iter()
            .filter_map(|start| match start {
                Start::Run { claim, .. } | Start::Wait { claim, .. } => Some(Arc::clone(claim)),
                Start::Known { .. } => None,
            })
            .collect();
        if !claims.is_empty() {
            lock(&self.rounds).push(claims);
        }
    }

    /// Keeps a delivery alive in the broker, from receive on.
    pub(crate) fn hold(&self, tag: Tag, now: Instant) {
        lock(&self.held).insert(tag, now);
    }

    /// Stops extending deliveries that are being settled.
    pub(crate) fn let_go(&self, tags: impl Iterator<Item = Tag>) {
        let mut held = lock(&self.held);
        tags.for_each(|tag| {
            held.remove(&tag);
        });
    }

    /// Asks every run to stop.
    pub(crate) fn cancel_all(&self) {
        for claim in lock(&self.rounds).iter().flatten() {
            claim.cancel();
        }
    }

    /// Claims that must stop by their own deadline, and those that are due for renewal, the oldest first.
    pub(crate) fn look(
        &self,
        now: Instant,
        renew_every: Duration,
    ) -> (Vec<Arc<ActiveClaim>>, Vec<Arc<ActiveClaim>>) {
        let mut overdue = Vec::new();
        let mut due = Vec::new();
        lock(&self.rounds).retain_mut(|round| {
            round.retain(|claim| !claim.has_ended());
            for claim in round.iter().filter(|claim| claim.lease().is_some()) {
                if claim.is_past_deadline(now) {
                    overdue.push(Arc::clone(claim));
                }
                if !claim.is_being_renewed()
                    && now.checked_sub(renew_every).is_some_and(|limit| claim.last_sent_before(limit))
                {
                    due.push(Arc::clone(claim));
                }
            }
            !round.is_empty()
        });
        due.sort_by_cached_key(|claim| claim.last_sent());
        (overdue, due)
    }

    /// Deliveries that were last extended `every` ago or earlier; they count as extended from `now` on, unless
    /// [`not_extended`](Self::not_extended) is called for them.
    pub(crate) fn due_deliveries(&self, now: Instant, every: Duration) -> Vec<(Tag, Instant)> {
        let mut held = lock(&self.held);
        let mut due = Vec::new();
        for (tag, extended) in held.iter_mut() {
            if now.duration_since(*extended) >= every {
                due.push((*tag, std::mem::replace(extended, now)));
            }
        }
        due
    }

    /// The delivery was last extended at `before` after all: it is due at the next tick, unless it is being settled.
    pub(crate) fn not_extended(&self, tag: Tag, before: Instant) {
        if let Some(extended) = lock(&self.held).get_mut(&tag) {
            *extended = before;
        }
    }

    /// Asks the run of a delivery to stop; true if there is one. Earlier claims of the delivery may have ended and still be
    /// here.
    pub(crate) fn cancel_delivery(&self, tag: Tag) -> bool {
        let rounds = lock(&self.rounds);
        rounds.iter().flatten().filter(|claim| claim.tag() == tag).any(|claim| claim.cancel())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> parking_lot::MutexGuard<'_, T> {
    mutex.lock()
}
