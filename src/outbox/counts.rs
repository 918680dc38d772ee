//! Counters of a relay: [`RelayCounts`].

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::OutboxStatus;

/// The counts of a relay so far, and the status of its outbox at the last check.
#[derive(Debug, Default)]
pub struct RelayCounts {
    published: AtomicU64,
    failed: AtomicU64,
    cleaned: AtomicU64,
    answers: AtomicBool,
    seen: Mutex<OutboxStatus>,
}

impl RelayCounts {
    /// Rows whose publish was confirmed.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Publishes that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Published rows that were removed.
    pub fn cleaned(&self) -> u64 {
        self.cleaned.load(Ordering::Relaxed)
    }

    /// Whether the outbox answered when it was last asked. False before the first answer.
    pub fn is_outbox_up(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// What waited when the relay last looked: see [`RelayConfig::look_every`](super::RelayConfig::look_every). Other relays
    /// see the same rows.
    pub fn seen(&self) -> OutboxStatus {
        self.seen.lock().clone()
    }

    pub(super) fn add_published(&self, rows: usize) {
        self.published.fetch_add(rows as u64, Ordering::Relaxed);
    }

    pub(super) fn add_failed(&self, publishes: usize) {
        self.failed.fetch_add(publishes as u64, Ordering::Relaxed);
    }

    pub(super) fn add_cleaned(&self, rows: u64) {
        self.cleaned.fetch_add(rows, Ordering::Relaxed);
    }

    pub(super) fn set_outbox_up(&self, answers: bool) {
        self.answers.store(answers, Ordering::Relaxed);
    }

    pub(super) fn set_seen(&self, status: OutboxStatus) {
        *self.seen.lock() = status;
    }
}
