//! The fields of a key record, and the small types that transitions are expressed in.

use std::time::Duration;

use bytes::Bytes;

use super::super::{KeyRecord, KeyState, OwnerToken, Reason, StoredResult};
use crate::key::{Fingerprint, Key};

/// The owner of a record that has not been claimed since a redrive opened it.
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
    pub(super) fn next_fence(self, stored: u64) -> u64 {
        (stored.max(self.fence_floor) + 1).max(self.now)
    }

    pub(super) fn since(self, then: u64) -> Duration {
        Duration::from_micros(self.now.saturating_sub(then))
    }

    pub(super) fn until(self, then: u64) -> Duration {
        Duration::from_micros(then.saturating_sub(self.now))
    }
}

/// `duration` in microseconds, at most some 146,000 years, so that sums stay within what databases can hold.
pub fn micros(duration: Duration) -> u64 {
    const MOST: u64 = (i64::MAX / 2) as u64;
    duration.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(duration.subsec_micros())).min(MOST)
}

/// The effect of a request on a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Step<T> {
    /// The answer.
    pub answer: T,
    /// True if the record must be written.
    pub changed: bool,
}

impl<T> Step<T> {
    pub(super) fn unchanged(answer: T) -> Self {
        Self { answer, changed: false }
    }

    pub(super) fn changed(answer: T) -> Self {
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
    /// The handler's result and what is kept with it: [`CompleteRequest::stored_result`](super::super::CompleteRequest::stored_result).
    pub result: Option<Bytes>,
}

impl Record {
    /// The state of an unknown key: a record that has always been expired.
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

    /// True of what is found where nothing is known.
    pub fn is_nothing(&self) -> bool {
        self.fence == 0 && self.written_at == 0
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
        let stored = detail.and_then(|detail| detail.result.as_ref());
        let parts = stored.map(|stored| (StoredResult::of(stored), stored.len()));
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
            result_bytes: parts.and_then(|(parts, bytes)| parts.result_bytes(bytes)),
            trace: parts.and_then(|(parts, _)| parts.trace),
        })
    }
}
