//! The protocol of a key as pure functions: a [`Record`] and a request give an answer and the record afterwards.
//!
//! Stores that decide in this process (in memory, SQLite) share them; stores that decide in the database's own
//! language answer the same, which the suite in `testing::store` shows. Nothing here reads a clock or does IO: times
//! are microseconds of the store's clock and come in as a [`Moment`].

mod columns;
mod kept;

use std::time::Duration;

pub use columns::RecordColumns;
pub use kept::{Detail, Moment, Record, Step, micros};

use super::{
    Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, Claimed, Commit, CompleteRequest, Completion,
    Exhausted, FailRequest, Failure, KeyMark, KeyState, Lease, MAX_GENERATION, MarkedKey, Reason, Redrive,
    RedriveRequest, RenewRequest, Renewal,
};
use crate::key::Key;

impl Record {
    /// See [`Store::claim`](super::Store::claim).
    ///
    /// A claim of the next generation raises that of a free, failed or lapsed record, so that the copies of a redriven
    /// message that dies are distinguished from a further redrive. Over a dead record, or a terminal failure whose
    /// lease is over, it is a redrive: it reopens the key and brings its own fingerprint. A generation beyond the next
    /// one belongs to no letter of this record: it counts as a copy of the generation that is kept.
    pub fn claim(&mut self, at: Moment, terms: &ClaimTerms, request: &ClaimRequest) -> Step<Claim> {
        if self.is_expired(at.now) {
            *self = Self {
                fence: self.fence,
                fingerprint: request.fingerprint,
                generation: request.possible_generation(),
                first_at: at.now,
                ..Self::nothing()
            };
            return Step::changed(self.hand_out(at, terms, request));
        }
        let newer = self.is_followed_by(request.generation);
        let redrives = newer && matches!(self.state, KeyState::Dead | KeyState::Terminal);
        if self.has_another_fingerprint(request) && !redrives {
            return Step::unchanged(Claim::Mismatch);
        }
        let live = at.now < self.lease_until;
        let mine = self.owner == request.owner;
        match self.state {
            KeyState::Completed => return Step::unchanged(self.completed(at)),
            KeyState::Dead if !newer => return Step::unchanged(self.dead(at)),
            KeyState::Dead => self.reopen(at, request.generation),
            KeyState::Pending if live && mine => return Step::unchanged(self.claimed(request.key, at)),
            KeyState::Terminal if live && mine => {
                return Step::unchanged(self.exhausted(request.key, at, self.written_at));
            }
            KeyState::Pending | KeyState::Terminal if live => {
                return Step::unchanged(Claim::InProgress { retry_in: at.until(self.lease_until) });
            }
            KeyState::Pending => self.lapse(terms),
            // Its letter was published and the burial was not written.
            KeyState::Terminal if newer => self.reopen(at, request.generation),
            KeyState::Terminal | KeyState::Absent | KeyState::Failed => {}
        }
        if newer {
            self.generation = request.generation;
        }
        self.fingerprint = self.fingerprint.or(request.fingerprint);
        Step::changed(self.hand_out(at, terms, request))
    }

    /// See [`Store::complete`](super::Store::complete).
    pub fn complete(&mut self, at: Moment, request: &CompleteRequest) -> Step<Completion> {
        let mine = self.is_of(&request.lease);
        if self.is_expired(at.now) {
            *self = Self {
                fingerprint: request.fingerprint,
                generation: request.possible_generation(),
                first_at: at.now,
                ..Self::nothing()
            };
            self.finish(at, request);
            return Step::changed(Completion::Inserted);
        }
        match self.state {
            KeyState::Pending if mine => {
                self.finish(at, request);
                Step::changed(Completion::Completed)
            }
            KeyState::Absent => {
                if self.is_followed_by(request.generation) {
                    self.generation = request.generation;
                }
                self.fingerprint = self.fingerprint.or(request.fingerprint);
                self.finish(at, request);
                Step::changed(Completion::Inserted)
            }
            KeyState::Completed if mine => Step::unchanged(Completion::Repeated),
            KeyState::Completed | KeyState::Dead => Step::unchanged(Completion::DoneByAnother),
            KeyState::Pending | KeyState::Failed | KeyState::Terminal => {
                Step::unchanged(Completion::HeldByAnother)
            }
        }
    }

    /// See [`TransactionalStore::commit`](super::TransactionalStore::commit): completes what is pending by this claim,
    /// and nothing else.
    pub fn commit(&mut self, at: Moment, request: &CompleteRequest) -> Step<Commit> {
        if !self.is_pending_of(at, &request.lease) {
            return Step::unchanged(Commit::Fenced);
        }
        self.finish(at, request);
        Step::changed(Commit::Committed)
    }

    /// See [`PositionStore::mark_keys`](super::PositionStore::mark_keys): a claim and its completion in one step.
    /// Attempts do not count: the caller that runs the effect counts its own.
    pub fn mark(&mut self, at: Moment, ttl: Duration, mark: &KeyMark) -> Step<MarkedKey> {
        let terms = ClaimTerms { lease: Duration::ZERO, max_attempts: u32::MAX, ttl };
        let KeyMark { key, owner, fingerprint } = *mark;
        let claim = self.claim(at, &terms, &ClaimRequest { key, owner, fingerprint, generation: 0 });
        let lease = match claim.answer {
            Claim::Claimed(Claimed { lease, .. }) | Claim::Exhausted(Exhausted { lease, .. }) => lease,
            Claim::InProgress { retry_in } => return Step::unchanged(MarkedKey::InProgress { retry_in }),
            Claim::Completed { .. } => return Step::unchanged(MarkedKey::Completed),
            Claim::Dead { .. } => return Step::unchanged(MarkedKey::Dead),
            Claim::Mismatch => return Step::unchanged(MarkedKey::Mismatch),
        };
        let generation = self.generation;
        let request = CompleteRequest { lease, result: None, fingerprint, generation, ttl, trace: None };
        self.finish(at, &request);
        Step::changed(MarkedKey::Fresh)
    }

    /// See [`Store::renew`](super::Store::renew).
    pub fn renew(&mut self, at: Moment, request: &RenewRequest) -> Step<Renewal> {
        if !self.is_pending_of(at, &request.lease) {
            return Step::unchanged(Renewal::Lost);
        }
        self.lease_until = at.now + micros(request.lease_for);
        self.started |= request.started;
        self.written_at = at.now;
        Step::changed(Renewal::Renewed)
    }

    /// See [`Store::fail`](super::Store::fail).
    pub fn fail(&mut self, at: Moment, request: &FailRequest) -> Step<Failure> {
        if self.is_expired(at.now) || !self.is_of(&request.lease) {
            return Step::unchanged(Failure::Lost);
        }
        let written = match self.state {
            KeyState::Failed | KeyState::Terminal => false,
            KeyState::Pending => true,
            KeyState::Absent | KeyState::Completed | KeyState::Dead => return Step::unchanged(Failure::Lost),
        };
        if written {
            self.attempts += 1;
            self.started = false;
            self.reason = request.terminal;
            self.written_at = at.now;
            if request.terminal.is_some() {
                self.state = KeyState::Terminal;
            } else {
                self.state = KeyState::Failed;
                self.lease_until = 0;
            }
            let error = Some(request.stored_error().to_owned());
            self.detail = Some(Box::new(Detail { error, result: None }));
        }
        let answer = Failure::Recorded { attempts: self.attempts, first_age: at.since(self.first_at) };
        Step { answer, changed: written }
    }

    /// See [`Store::bury`](super::Store::bury).
    pub fn bury(&mut self, at: Moment, request: &BuryRequest) -> Step<Burial> {
        if self.is_expired(at.now) || !self.is_of(&request.lease) {
            return Step::unchanged(Burial::Lost);
        }
        match self.state {
            KeyState::Terminal => {
                self.state = KeyState::Dead;
                self.lease_until = 0;
                self.written_at = at.now;
                self.ttl = micros(request.ttl);
                Step::changed(Burial::Dead)
            }
            KeyState::Dead => Step::unchanged(Burial::Dead),
            KeyState::Absent | KeyState::Pending | KeyState::Failed | KeyState::Completed => {
                Step::unchanged(Burial::Lost)
            }
        }
    }

    /// See [`Store::release`](super::Store::release). Owner and fence stay, so that a repeat is recognised.
    pub fn release(&mut self, at: Moment, lease: &Lease) -> Step<bool> {
        if self.is_pending_of(at, lease) {
            self.state = KeyState::Absent;
            self.started = false;
            self.lease_until = 0;
            self.written_at = at.now;
            return Step::changed(true);
        }
        let repeated = self.state == KeyState::Absent && self.is_of(lease) && !self.is_expired(at.now);
        Step::unchanged(repeated)
    }

    /// See [`StoreAdmin::redrive`](super::StoreAdmin::redrive).
    pub fn redrive(&mut self, at: Moment, request: &RedriveRequest) -> Step<Redrive> {
        if self.is_expired(at.now) {
            return Step::unchanged(Redrive::NotDead);
        }
        let Some(next) = request.next_generation() else { return Step::unchanged(Redrive::NotDead) };
        match self.state {
            KeyState::Dead | KeyState::Terminal
                if self.generation == request.generation && at.now >= self.lease_until =>
            {
                self.reopen(at, next);
                self.written_at = at.now;
                self.ttl = micros(request.ttl);
                Step::changed(Redrive::Open { generation: next })
            }
            // The effect has happened, in whichever generation: nothing is left to redrive.
            KeyState::Completed => Step::unchanged(Redrive::Resolved),
            _ if self.generation <= request.generation => Step::unchanged(Redrive::NotDead),
            // Whatever follows the next generation, that one has died.
            _ if self.generation > next || self.state == KeyState::Dead => Step::unchanged(Redrive::Resolved),
            _ => Step::unchanged(Redrive::Open { generation: next }),
        }
    }

    /// See [`StoreAdmin::forget`](super::StoreAdmin::forget). Afterwards [`is_nothing`](Self::is_nothing): remove the record, and
    /// raise the [`Moment::fence_floor`] of later batches to its fence.
    pub fn forget(&mut self, at: Moment) -> Step<bool> {
        if self.is_expired(at.now) {
            return Step::unchanged(false);
        }
        *self = Self::nothing();
        Step::changed(true)
    }

    /// True if `generation` is the next one after that which is kept.
    fn is_followed_by(&self, generation: u32) -> bool {
        generation <= MAX_GENERATION && generation.checked_sub(1) == Some(self.generation)
    }

    fn is_of(&self, lease: &Lease) -> bool {
        self.owner == lease.owner && self.fence == lease.fence
    }

    fn is_pending_of(&self, at: Moment, lease: &Lease) -> bool {
        self.state == KeyState::Pending && self.is_of(lease) && !self.is_expired(at.now)
    }

    fn has_another_fingerprint(&self, request: &ClaimRequest) -> bool {
        matches!((self.fingerprint, request.fingerprint), (Some(known), Some(new)) if known != new)
    }

    /// The claim that held the record is over without a word of its owner.
    fn lapse(&mut self, terms: &ClaimTerms) {
        self.lost += 1;
        if self.started {
            self.attempts += 1;
            if self.attempts >= terms.max_attempts {
                self.reason = Some(Reason::ProcessLost);
            }
        }
    }

    /// A dead key starts again in `generation`. The next claim brings the fingerprint: the letter's payload may have been
    /// corrected.
    fn reopen(&mut self, at: Moment, generation: u32) {
        *self = Self {
            fence: self.fence,
            generation,
            first_at: at.now,
            written_at: self.written_at,
            ttl: self.ttl,
            ..Self::nothing()
        };
    }

    /// Gives the claim to the request's owner, for a run or for dead-lettering.
    fn hand_out(&mut self, at: Moment, terms: &ClaimTerms, request: &ClaimRequest) -> Claim {
        let last_written_at = self.written_at;
        self.owner = request.owner;
        self.fence = at.next_fence(self.fence);
        self.lease_until = at.now + micros(terms.lease);
        self.started = false;
        self.written_at = at.now;
        self.ttl = micros(terms.ttl);
        let used_up = self.attempts >= terms.max_attempts.max(1);
        if self.state == KeyState::Terminal || used_up {
            self.state = KeyState::Terminal;
            self.reason = self.reason.or(Some(Reason::AttemptsExhausted));
            self.exhausted(request.key, at, last_written_at)
        } else {
            self.state = KeyState::Pending;
            self.claimed(request.key, at)
        }
    }

    /// The effect has happened. An error of an earlier run is of no more interest.
    fn finish(&mut self, at: Moment, request: &CompleteRequest) {
        self.state = KeyState::Completed;
        self.owner = request.lease.owner;
        self.fence = request.lease.fence;
        self.started = false;
        self.reason = None;
        self.lease_until = 0;
        self.written_at = at.now;
        self.ttl = micros(request.ttl);
        self.detail =
            request.stored_result().map(|result| Box::new(Detail { error: None, result: Some(result) }));
    }

    fn lease(&self, key: Key) -> Lease {
        Lease { key, owner: self.owner, fence: self.fence }
    }

    fn claimed(&self, key: Key, at: Moment) -> Claim {
        Claim::Claimed(Claimed {
            lease: self.lease(key),
            attempt: self.attempts + 1,
            lost: self.lost,
            generation: self.generation,
            lease_left: at.until(self.lease_until),
        })
    }

    fn exhausted(&self, key: Key, at: Moment, last_written_at: u64) -> Claim {
        Claim::Exhausted(Exhausted {
            lease: self.lease(key),
            reason: self.reason.unwrap_or(Reason::AttemptsExhausted),
            error: self.detail.as_deref().and_then(|detail| detail.error.clone()),
            attempts: self.attempts,
            lost: self.lost,
            generation: self.generation,
            first_age: at.since(self.first_at),
            last_age: at.since(last_written_at),
        })
    }

    fn completed(&self, at: Moment) -> Claim {
        let stored = self.detail.as_deref().and_then(|detail| detail.result.clone());
        Claim::completed(stored, at.since(self.written_at))
    }

    fn dead(&self, at: Moment) -> Claim {
        Claim::Dead {
            reason: self.reason.unwrap_or(Reason::AttemptsExhausted),
            age: at.since(self.written_at),
            generation: self.generation,
        }
    }
}
