//! The claims and deliveries that the heartbeat keeps alive: [`KeptAlive`].

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::work::Start;
use crate::active_claim::{ActiveClaim, ClaimChunk, SharedClaim};
use crate::tag::Tag;

/// The claims and deliveries that are kept alive. Rounds enter and leave whole; claims of those that end within a third of their
/// lease are never looked at singly.
#[derive(Debug, Default)]
pub(crate) struct KeptAlive {
    rounds: Mutex<Rounds>,
    held: Mutex<BTreeMap<Tag, Instant>>,
}

impl KeptAlive {
    /// Keeps the claims of a round alive until their runs end. They are forgotten when the answer is dropped, but for those
    /// whose runs have not ended.
    pub(crate) fn watch(&self, starts: &[Start]) -> Watch<'_> {
        let mut chunks: Vec<ClaimChunk> = Vec::new();
        for start in starts {
            if let Start::Run { claim, .. } | Start::Wait { claim, .. } = start
                && chunks.last().is_none_or(|last| !Arc::ptr_eq(last, claim.chunk()))
            {
                chunks.push(Arc::clone(claim.chunk()));
            }
        }
        // Runs without a claim may stand between those of a chunk.
        chunks.sort_unstable_by_key(Arc::as_ptr);
        chunks.dedup_by(|one, other| Arc::ptr_eq(one, other));
        let number = (!chunks.is_empty()).then(|| lock(&self.rounds).add(chunks));
        Watch { kept_alive: self, number }
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
        for claim in lock(&self.rounds).claims() {
            claim.cancel();
        }
    }

    /// Claims that must stop by their own deadline, and those that are due for renewal, the oldest first.
    pub(crate) fn look(&self, now: Instant, renew_every: Duration) -> (Vec<SharedClaim>, Vec<SharedClaim>) {
        let is_held = |claim: &ActiveClaim| !claim.has_ended() && claim.lease().is_some();
        let is_overdue = |claim: &ActiveClaim| is_held(claim) && claim.is_past_deadline(now);
        let limit = now.checked_sub(renew_every);
        let is_due = |claim: &ActiveClaim| {
            is_held(claim)
                && !claim.is_being_renewed()
                && limit.is_some_and(|limit| claim.last_sent_before(limit))
        };
        let mut overdue = Vec::new();
        let mut due = Vec::new();
        lock(&self.rounds).open.retain(|_, round| {
            round.retain(has_open);
            for chunk in &*round {
                overdue.extend(SharedClaim::choose(chunk, is_overdue));
                due.extend(SharedClaim::choose(chunk, is_due));
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
        rounds.claims().filter(|claim| claim.tag() == tag).any(|claim| claim.cancel())
    }
}

/// The claims of rounds, by the order in which those began.
#[derive(Debug, Default)]
struct Rounds {
    open: BTreeMap<u64, Vec<ClaimChunk>>,
    next: u64,
}

impl Rounds {
    fn add(&mut self, chunks: Vec<ClaimChunk>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, chunks);
        number
    }

    fn claims(&self) -> impl Iterator<Item = &ActiveClaim> {
        self.open.values().flatten().flat_map(|chunk| chunk.iter())
    }
}

/// True if not all of its runs have ended.
fn has_open(chunk: &ClaimChunk) -> bool {
    chunk.iter().any(|claim| !claim.has_ended())
}

/// See [`KeptAlive::watch`].
#[must_use = "dropping it ends the watch over runs that have ended"]
pub(crate) struct Watch<'k> {
    kept_alive: &'k KeptAlive,
    /// `None`: the round has no claims.
    number: Option<u64>,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        if let Entry::Occupied(mut round) = lock(&self.kept_alive.rounds).open.entry(number) {
            round.get_mut().retain(has_open);
            if round.get().is_empty() {
                round.remove();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> parking_lot::MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::active_claim::ClaimSharing;
    use crate::message::Message;
    use crate::pipeline::receipt::SettleQueue;
    use crate::pipeline::work::InFlight;

    #[test]
    fn a_round_is_forgotten_with_its_watch_but_for_claims_whose_runs_go_on() {
        let (kept_alive, queue) = (KeptAlive::default(), SettleQueue::new());
        let mut sharing = ClaimSharing::new(40);
        let tag = |number| Tag { epoch: 0, number };
        (0..40).for_each(|number| sharing.add(ActiveClaim::unprotected(1, tag(number), Instant::now())));
        let claims = sharing.all();
        let starts: Vec<_> = claims
            .iter()
            .map(|claim| {
                let work = InFlight::new(Message::builder("").build(), queue.receipt(claim.tag()));
                Start::Run { work: Box::new(work), claim: claim.clone(), suspect: false }
            })
            .collect();
        let watched = || lock(&kept_alive.rounds).claims().count();
        let empty = kept_alive.watch(&[]);
        let watch = kept_alive.watch(&starts);
        drop(empty);
        assert_eq!(watched(), 40);
        assert!(kept_alive.cancel_delivery(tag(39)), "the last one is watched as well");
        claims.iter().filter(|claim| claim.tag().number != 20).for_each(|claim| claim.end());
        drop(watch);
        assert_eq!(watched(), 16, "the chunk of the run that goes on");
        assert!(kept_alive.cancel_delivery(tag(20)));
        claims[20].end();
        let _ = kept_alive.look(Instant::now(), Duration::from_secs(1));
        assert!(lock(&kept_alive.rounds).open.is_empty());
    }
}
