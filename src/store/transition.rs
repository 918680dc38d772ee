//! The protocol of a key as pure functions: a [`Record`] and a request give an answer and the record afterwards.
//!
//! Stores that decide in this process (in memory, SQLite) share them; stores that decide in the database's own
//! language answer the same, which the suite in [`testing::store`](crate::testing::store) shows. Nothing here reads a
//! clock or does IO: times are microseconds of the store's clock and come in as a [`Moment`].

use std::time::Duration;

use bytes::Bytes;

use super::{
    Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, Claimed, CompleteRequest, Completion, Exhausted,
    FailRequest, Failure, KeyRecord, KeyState, Lease, OwnerToken, Reason, Redrive, RedriveRequest,
    RenewRequest, Renewal,
};
use crate::key::{Fingerprint, Key};

/// The owner of a record that nobody has claimed since a redrive opened it.
const NOBODY: OwnerToken = OwnerToken::from_bytes([0; 16]);

/// When a batch happens, and below which fences none may be given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The store's clock, in microseconds.
    pub now: u64,
    /// The largest fence of all records that were removed. It keeps fences growing even if the clock stands still
    /// between a removal and the next claim.
    pub fence_floor: u64,
}

impl Moment {
    fn next_fence(self, stored: u64) -> u64 {
        (stored.max(self.fence_floor) + 1).max(self.now)
    }

    fn since(self, then: u64) -> Duration {
        Duration::from_micros(self.now.saturating_sub(then))
    }

    fn until(self, then: u64) -> Duration {
        Duration::from_micros(then.saturating_sub(self.now))
    }
}

/// `duration` in microseconds, at most some 146,000 years, so that sums stay within what databases can hold.
pub fn micros(duration: Duration) -> u64 {
    const MOST: u64 = (i64::MAX / 2) as u64;
    duration.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(duration.subsec_micros())).min(MOST)
}

/// What a request did to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Step<T> {
    /// The answer.
    pub answer: T,
    /// True if the record must be written.
    pub changed: bool,
}

impl<T> Step<T> {
    fn unchanged(answer: T) -> Self {
        Self { answer, changed: false }
    }

    fn changed(answer: T) -> Self {
        Self { answer, changed: true }
    }
}

/// All that is kept of a key. Times are microseconds of the store's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The state.
    pub state: KeyState,
    /// The run was marked as started: a lapse counts as an attempt.
    pub started: bool,
    /// Why it failed for good.
    pub reason: Option<Reason>,
    /// The last claim's owner.
    pub owner: OwnerToken,
    /// The payload's fingerprint, once a claim brought one.
    pub fingerprint: Option<Fingerprint>,
    /// The last claim's fence.
    pub fence: u64,
    /// Failed runs.
    pub attempts: u32,
    /// Claims that lapsed.
    pub lost: u32,
    /// Redrives.
    pub generation: u32,
    /// When the lease ends; 0 in states that have none.
    pub lease_until: u64,
    /// The first claim.
    pub first_at: u64,
    /// The last write.
    pub written_at: u64,
    /// How long the record outlives its last write or its lease.
    pub ttl: u64,
    /// What most records lack, apart, so that the others stay small.
    pub detail: Option<Box<Detail>>,
}

/// The rarely used part of a [`Record`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// The last error's text.
    pub error: Option<String>,
    /// What the handler returned.
    pub result: Option<Bytes>,
}

impl Record {
    /// What is found where nothing is known: a record that has always been expired.
    pub const fn nothing() -> Self {
        Self {
            state: KeyState::Absent,
            started: false,
            reason: None,
            owner: NOBODY,
            fingerprint: None,
            fence: 0,
            attempts: 0,
            lost: 0,
            generation: 0,
            lease_until: 0,
            first_at: 0,
            written_at: 0,
            ttl: 0,
            detail: None,
        }
    }

    /// When the record stops counting.
    pub fn expires_at(&self) -> u64 {
        self.written_at.max(self.lease_until).saturating_add(self.ttl)
    }

    /// True once the record counts as absent.
    pub fn is_expired(&self, now: u64) -> bool {
        now >= self.expires_at()
    }

    /// What tools see of it, unless it is expired.
    pub fn view(&self, key: Key, at: Moment) -> Option<KeyRecord> {
        if self.is_expired(at.now) {
            return None;
        }
        let detail = self.detail.as_deref();
        Some(KeyRecord {
            key,
            state: self.state,
            fence: self.fence,
            attempts: self.attempts,
            lost: self.lost,
            generation: self.generation,
            lease_left: matches!(self.state, KeyState::Pending | KeyState::Terminal)
                .then(|| at.until(self.lease_until)),
            first_age: at.since(self.first_at),
            last_age: at.since(self.written_at),
            expires_in: at.until(self.expires_at()),
            reason: self.reason,
            error: detail.and_then(|detail| detail.error.clone()),
            result_bytes: detail.and_then(|detail| detail.result.as_ref()).map(Bytes::len),
        })
    }

    /// See [`Store::claim`](super::Store::claim).
    ///
    /// A claim whose generation is newer than that of a free, failed or lapsed record raises the record's, so that
    /// the copies of a redriven message that dies are told from a further redrive.
    pub fn claim(&mut self, at: Moment, terms: &ClaimTerms, request: &ClaimRequest) -> Step<Claim> {
        if self.is_expired(at.now) {
            *self = Self {
                fence: self.fence,
                fingerprint: request.fingerprint,
                generation: request.generation,
                first_at: at.now,
                ..Self::nothing()
            };
            return Step::changed(self.hand_out(at, terms, request));
        }
        if self.has_another_fingerprint(request) {
            return Step::unchanged(Claim::Mismatch);
        }
        let live = at.now < self.lease_until;
        let mine = self.owner == request.owner;
        match self.state {
            KeyState::Completed => return Step::unchanged(self.completed(at)),
            KeyState::Dead if request.generation <= self.generation => return Step::unchanged(self.dead(at)),
            KeyState::Dead => self.reopen(at, request.generation),
            KeyState::Pending if live && mine => return Step::unchanged(self.claimed(request.key, at)),
            KeyState::Terminal if live && mine => {
                return Step::unchanged(self.exhausted(request.key, at, self.written_at));
            }
            KeyState::Pending | KeyState::Terminal if live => {
                return Step::unchanged(Claim::InProgress { retry_in: at.until(self.lease_until) });
            }
            KeyState::Pending => self.lapse(terms),
            KeyState::Terminal | KeyState::Absent | KeyState::Failed => {}
        }
        self.generation = self.generation.max(request.generation);
        self.fingerprint = self.fingerprint.or(request.fingerprint);
        Step::changed(self.hand_out(at, terms, request))
    }

    /// See [`Store::complete`](super::Store::complete).
    pub fn complete(&mut self, at: Moment, request: &CompleteRequest) -> Step<Completion> {
        let mine = self.is_of(&request.lease);
        if self.is_expired(at.now) {
            *self = Self {
                fingerprint: request.fingerprint,
                generation: request.generation,
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
                self.generation = self.generation.max(request.generation);
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

    /// See [`Store::redrive`](super::Store::redrive).
    pub fn redrive(&mut self, at: Moment, request: &RedriveRequest) -> Step<Redrive> {
        if self.is_expired(at.now) {
            return Step::unchanged(Redrive::NotDead);
        }
        let next = request.generation.saturating_add(1);
        match self.state {
            KeyState::Dead if self.generation == request.generation => {
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

    /// See [`Store::forget`](super::Store::forget). Afterwards [`is_nothing`](Self::is_nothing): remove the record, and
    /// raise the [`Moment::fence_floor`] of later batches to its fence.
    pub fn forget(&mut self, at: Moment) -> Step<bool> {
        if self.is_expired(at.now) {
            return Step::unchanged(false);
        }
        *self = Self::nothing();
        Step::changed(true)
    }

    /// True of what is found where nothing is known.
    pub fn is_nothing(&self) -> bool {
        self.fence == 0 && self.written_at == 0
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

    /// A dead key begins anew in `generation`.
    fn reopen(&mut self, at: Moment, generation: u32) {
        *self = Self {
            fence: self.fence,
            fingerprint: self.fingerprint,
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
            request.result.clone().map(|result| Box::new(Detail { error: None, result: Some(result) }));
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
        Claim::Completed {
            result: self.detail.as_deref().and_then(|detail| detail.result.clone()),
            age: at.since(self.written_at),
        }
    }

    fn dead(&self, at: Moment) -> Claim {
        Claim::Dead {
            reason: self.reason.unwrap_or(Reason::AttemptsExhausted),
            age: at.since(self.written_at),
            generation: self.generation,
        }
    }
}
