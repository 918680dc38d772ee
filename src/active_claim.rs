//! The claim behind a running handler, shared with its message, the heartbeat and the pipeline.

use std::mem;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::key::Key;
use crate::store::{Claimed, Lease};
use crate::tag::Tag;

const RUNNING: u8 = 0;
const CANCELLED: u8 = 1;
const ENDED: u8 = 2;
const RETURNED: u8 = 4;

/// No run has ended that was measured.
const NO_RUN: u64 = u64::MAX;

/// One run under one claim. The worker's own deadline is kept here: when a claim or renewal was last *sent*, plus the
/// lease, less a margin, on a monotonic clock.
#[derive(Debug)]
pub(crate) struct ActiveClaim {
    lease: Option<Lease>,
    tag: Tag,
    attempt: u32,
    generation: u32,
    epoch: Instant,
    deadline_us: AtomicU64,
    renewed_us: AtomicU64,
    /// How long the run took, in nanoseconds, or [`NO_RUN`].
    ran_nanoseconds: AtomicU64,
    being_renewed: AtomicBool,
    state: AtomicU8,
    cancelled: Notify,
}

/// How many claims one allocation holds: one for each cost a twentieth of a message's processing. It is kept until the last of them
/// is dropped.
const CHUNK: usize = 16;

/// Claims in one allocation.
pub(crate) type ClaimChunk = Arc<Vec<ActiveClaim>>;

/// An [`ActiveClaim`] that is shared; others of its round lie in the same allocation.
#[derive(Clone, Debug)]
pub(crate) struct SharedClaim {
    chunk: ClaimChunk,
    index: usize,
}

impl SharedClaim {
    /// A claim that stands alone.
    pub(crate) fn new(claim: ActiveClaim) -> Self {
        Self { chunk: Arc::new(vec![claim]), index: 0 }
    }

    /// The claims of `chunk` that `wanted` chooses.
    pub(crate) fn choose(
        chunk: &ClaimChunk,
        wanted: impl Fn(&ActiveClaim) -> bool,
    ) -> impl Iterator<Item = Self> {
        let all = chunk.iter().enumerate().filter(move |(_, claim)| wanted(claim));
        all.map(|(index, _)| Self { chunk: Arc::clone(chunk), index })
    }

    /// The allocation that holds the claim.
    pub(crate) fn chunk(&self) -> &ClaimChunk {
        &self.chunk
    }
}

/// Shares the claims of a round.
pub(crate) struct ClaimSharing {
    /// At most so many claims are still to come.
    most: usize,
    chunk: Vec<ActiveClaim>,
    shared: Vec<SharedClaim>,
}

impl ClaimSharing {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, chunk: Vec::new(), shared: Vec::new() }
    }

    #[inline]
    pub(crate) fn add(&mut self, claim: ActiveClaim) {
        if self.chunk.capacity() == 0 {
            self.chunk.reserve_exact(CHUNK.min(self.most));
        }
        self.chunk.push(claim);
        if self.chunk.len() == CHUNK {
            self.share_chunk();
        }
    }

    fn share_chunk(&mut self) {
        if self.shared.is_empty() {
            self.shared.reserve_exact(self.most);
        }
        let chunk = Arc::new(mem::take(&mut self.chunk));
        self.most = self.most.saturating_sub(chunk.len());
        self.shared.extend((0..chunk.len()).map(|index| SharedClaim { chunk: Arc::clone(&chunk), index }));
    }

    /// The claims in the order in which they were added.
    pub(crate) fn all(mut self) -> Vec<SharedClaim> {
        if !self.chunk.is_empty() {
            self.share_chunk();
        }
        self.shared
    }
}

/// A point in time, for comparing the deadlines of many claims with it: the claims of a round were sent together.
pub(crate) struct Horizon {
    at: Instant,
    /// `at` in microseconds since this.
    epoch: Instant,
    micros: u64,
}

impl Horizon {
    pub(crate) fn new(at: Instant) -> Self {
        Self { at, epoch: at, micros: 0 }
    }

    /// True if the claim must be renewed until then.
    pub(crate) fn reaches_deadline(&mut self, claim: &ActiveClaim) -> bool {
        if claim.epoch != self.epoch {
            (self.epoch, self.micros) = (claim.epoch, claim.micros(self.at));
        }
        self.micros >= claim.deadline_us.load(Ordering::Relaxed)
    }
}

impl Deref for SharedClaim {
    type Target = ActiveClaim;

    fn deref(&self) -> &ActiveClaim {
        &self.chunk[self.index]
    }
}

/// In microseconds, as deadlines are kept.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl ActiveClaim {
    /// A claim that was asked for at `sent`; its run must stop so much later, unless it is renewed.
    #[inline]
    pub(crate) fn new(claimed: &Claimed, tag: Tag, sent: Instant, holds_for: Duration) -> Self {
        let deadline_us = AtomicU64::new(micros(holds_for));
        Self {
            deadline_us,
            ..Self::with(Some(claimed.lease), tag, claimed.attempt, claimed.generation, sent)
        }
    }

    /// A run without a claim: by policy, for a message without a key, or in front of a store that is down.
    pub(crate) fn unprotected(attempt: u32, tag: Tag, now: Instant) -> Self {
        Self::with(None, tag, attempt, 0, now)
    }

    #[inline]
    fn with(lease: Option<Lease>, tag: Tag, attempt: u32, generation: u32, epoch: Instant) -> Self {
        Self {
            lease,
            tag,
            attempt,
            generation,
            epoch,
            deadline_us: AtomicU64::new(u64::MAX),
            renewed_us: AtomicU64::new(0),
            ran_nanoseconds: AtomicU64::new(NO_RUN),
            being_renewed: AtomicBool::new(false),
            state: AtomicU8::new(RUNNING),
            cancelled: Notify::new(),
        }
    }

    fn micros(&self, at: Instant) -> u64 {
        micros(at.saturating_duration_since(self.epoch))
    }

    pub(crate) fn key(&self) -> Option<Key> {
        self.lease.map(|lease| lease.key)
    }

    pub(crate) fn lease(&self) -> Option<Lease> {
        self.lease
    }

    /// The delivery this run belongs to, for the broker's side of the heartbeat.
    pub(crate) fn tag(&self) -> Tag {
        self.tag
    }

    pub(crate) fn fence(&self) -> u64 {
        self.lease.map_or(0, |lease| lease.fence)
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// Notes a confirmed renewal that was sent at `sent`.
    pub(crate) fn renewed(&self, sent: Instant, deadline: Instant) {
        self.renewed_us.store(self.micros(sent), Ordering::Relaxed);
        self.deadline_us.store(self.micros(deadline), Ordering::Relaxed);
    }

    /// True if the last confirmed claim or renewal was sent before `limit`.
    pub(crate) fn last_sent_before(&self, limit: Instant) -> bool {
        self.epoch < limit && self.renewed_us.load(Ordering::Relaxed) < self.micros(limit)
    }

    /// Orders claims of a process by when the last confirmed claim or renewal was sent.
    pub(crate) fn last_sent(&self) -> Instant {
        self.epoch + Duration::from_micros(self.renewed_us.load(Ordering::Relaxed))
    }

    /// When the run must have stopped unless the lease is renewed; only of a run under a claim.
    pub(crate) fn deadline(&self) -> Instant {
        self.epoch + Duration::from_micros(self.deadline_us.load(Ordering::Relaxed))
    }

    /// True while a renewal is under way.
    pub(crate) fn is_being_renewed(&self) -> bool {
        self.being_renewed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_being_renewed(&self, is: bool) {
        self.being_renewed.store(is, Ordering::Relaxed);
    }

    pub(crate) fn is_past_deadline(&self, now: Instant) -> bool {
        self.micros(now) >= self.deadline_us.load(Ordering::Relaxed)
    }

    /// Asks the run to stop. Does nothing once it has ended.
    pub(crate) fn cancel(&self) -> bool {
        let first =
            self.state.compare_exchange(RUNNING, CANCELLED, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if first {
            self.cancelled.notify_waiters();
        }
        first
    }

    /// The handler has returned: it cannot be asked to stop any more. The lease is kept until the record is durable.
    pub(crate) fn returned(&self) {
        self.state.fetch_or(RETURNED, Ordering::AcqRel);
    }

    /// Notes how long the run took.
    pub(crate) fn ran(&self, nanoseconds: u64) {
        self.ran_nanoseconds.store(nanoseconds, Ordering::Relaxed);
    }

    /// Takes how many seconds the run took; `None` if there was no run, or it is not measured.
    pub(crate) fn take_run_seconds(&self) -> Option<f64> {
        let nanoseconds = self.ran_nanoseconds.load(Ordering::Relaxed);
        (nanoseconds != NO_RUN).then(|| {
            self.ran_nanoseconds.store(NO_RUN, Ordering::Relaxed);
            nanoseconds as f64 * 1e-9
        })
    }

    /// What it did was undone with the transaction that it shared, and it runs once more: it can be asked to stop again.
    pub(crate) fn runs_again(&self) {
        self.state.fetch_and(!RETURNED, Ordering::AcqRel);
    }

    /// All is recorded: the heartbeat no longer renews the claim.
    pub(crate) fn end(&self) {
        let state = self.state.load(Ordering::Acquire);
        if state & RETURNED == 0 {
            self.state.fetch_or(ENDED, Ordering::AcqRel);
        } else {
            // It cannot be asked to stop any more, so that none but its own task changes this, without the cost of doing both at once.
            self.state.store(state | ENDED, Ordering::Release);
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.state.load(Ordering::Acquire) & ENDED != 0
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.state.load(Ordering::Acquire) & CANCELLED != 0
    }

    pub(crate) async fn cancelled(&self) {
        loop {
            let notified = self.cancelled.notified();
            if self.is_cancelled() {
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_claims_stand_in_the_order_in_which_they_were_added_and_a_chunk_lives_as_long_as_one_of_them() {
        let now = Instant::now();
        for count in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5] {
            let mut sharing = ClaimSharing::new(count + 7);
            for number in 0..count as u64 {
                sharing.add(ActiveClaim::unprotected(1, Tag { epoch: 0, number }, now));
            }
            let mut shared = sharing.all();
            let numbers: Vec<_> = shared.iter().map(|claim| claim.tag().number).collect();
            assert_eq!(numbers, (0..count as u64).collect::<Vec<_>>());
            let chunks: Vec<_> = shared.iter().map(|claim| Arc::downgrade(claim.chunk())).collect();
            assert!(chunks.iter().all(|chunk| chunk.upgrade().is_some_and(|chunk| chunk.len() <= CHUNK)));
            let last = shared.pop();
            drop(shared);
            let kept = chunks.iter().filter(|chunk| chunk.upgrade().is_some()).count();
            assert_eq!(kept, last.as_ref().map_or(0, |last| last.chunk().len()));
        }
    }

    #[test]
    fn a_horizon_compares_claims_of_several_rounds() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let key = Key::from_bytes([1; 16]);
        let lease = Lease { key, owner: crate::store::OwnerToken::from_bytes([2; 16]), fence: 1 };
        let claim = |sent, holds_for| {
            let claimed = Claimed { lease, attempt: 1, lost: 0, generation: 0, lease_left: holds_for };
            ActiveClaim::new(&claimed, Tag { epoch: 0, number: 0 }, sent, holds_for)
        };
        let mut horizon = Horizon::new(now + 10 * second);
        for (sent, holds_for, reached) in [
            (now, 10 * second, true),
            (now, 11 * second, false),
            (now + 5 * second, 5 * second, true),
            (now + 5 * second, 6 * second, false),
            (now + 10 * second, Duration::from_micros(1), false),
            (now, 9 * second, true),
        ] {
            let claim = claim(sent, holds_for);
            assert_eq!(horizon.reaches_deadline(&claim), reached, "{:?} {holds_for:?}", sent - now);
            assert_eq!(claim.is_past_deadline(now + 10 * second), reached);
        }
        assert!(!horizon.reaches_deadline(&ActiveClaim::unprotected(1, Tag { epoch: 0, number: 0 }, now)));
    }

    #[test]
    fn a_run_that_has_ended_is_not_asked_to_stop_whether_or_not_its_handler_has_returned() {
        for returned in [false, true] {
            let claim = ActiveClaim::unprotected(1, Tag { epoch: 0, number: 0 }, Instant::now());
            if returned {
                claim.returned();
            }
            assert!(!claim.has_ended());
            claim.end();
            assert!(claim.has_ended() && !claim.cancel() && !claim.is_cancelled());
        }
        let claim = ActiveClaim::unprotected(1, Tag { epoch: 0, number: 0 }, Instant::now());
        assert!(claim.cancel());
        claim.returned();
        claim.end();
        assert!(claim.has_ended() && claim.is_cancelled(), "that it was asked to stop is kept");
    }
}
