//! Gauges of a pipeline: what runs, what is oldest, why intake pauses, and the limits to compare them with.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A reason for which no more messages are taken from the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IntakePause {
    /// The store does not answer.
    Store,
    /// The handler is unavailable: the circuit breaker is open.
    Handler,
    /// As many deliveries can run or are being settled as `max_in_flight` allows.
    InFlight,
    /// The deliveries in flight have as many bytes as `max_in_flight_bytes` allows.
    Bytes,
    /// As many deliveries wait as `max_waiting` allows.
    Waiting,
    /// One of the limits of what is in flight is reached while `rate_limit` lets no handler start.
    Rate,
}

impl IntakePause {
    /// All reasons.
    pub const ALL: [Self; 6] =
        [Self::Store, Self::Handler, Self::InFlight, Self::Bytes, Self::Waiting, Self::Rate];

    /// The value of the label `reason`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Handler => "handler",
            Self::InFlight => "in_flight",
            Self::Bytes => "bytes",
            Self::Waiting => "waiting",
            Self::Rate => "rate",
        }
    }

    const fn bit(self) -> u64 {
        1 << self as u64
    }
}

/// The reasons for which intake pauses at a moment; without one it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntakePauses(u64);

impl IntakePauses {
    /// True if intake does not pause.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True if this is one of the reasons.
    pub const fn contains(self, reason: IntakePause) -> bool {
        self.0 & reason.bit() != 0
    }

    pub(crate) fn set(&mut self, reason: IntakePause, applies: bool) {
        if applies {
            self.0 |= reason.bit();
        }
    }
}

/// The limits of a pipeline, to compare its gauges and the ages of its duplicates with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Handlers that run at once: the present number, where it adapts.
    pub concurrency: usize,
    /// Deliveries in flight that can run.
    pub in_flight: usize,
    /// Bytes of deliveries in flight.
    pub in_flight_bytes: usize,
    /// Deliveries that wait.
    pub waiting: usize,
    /// How long a completed key is remembered.
    pub ttl: Duration,
}

#[derive(Debug)]
pub(super) struct Gauges {
    /// Against which times are kept.
    epoch: Instant,
    running: AtomicU64,
    breaker_open: AtomicBool,
    paused: AtomicU64,
    /// When the oldest delivery in flight was received, in microseconds since `epoch`, plus one; 0: nothing is in flight.
    oldest_us: AtomicU64,
    limits: OnceLock<Limits>,
    concurrency: AtomicU64,
}

impl Default for Gauges {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            running: AtomicU64::new(0),
            breaker_open: AtomicBool::new(false),
            paused: AtomicU64::new(0),
            oldest_us: AtomicU64::new(0),
            limits: OnceLock::new(),
            concurrency: AtomicU64::new(0),
        }
    }
}

impl Gauges {
    pub(super) fn running(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }

    pub(super) fn is_breaker_open(&self) -> bool {
        self.breaker_open.load(Ordering::Relaxed)
    }

    pub(super) fn paused(&self) -> IntakePauses {
        IntakePauses(self.paused.load(Ordering::Relaxed))
    }

    pub(super) fn oldest_unsettled(&self) -> Option<Duration> {
        let received = self.oldest_us.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.epoch.elapsed().saturating_sub(Duration::from_micros(received)))
    }

    pub(super) fn limits(&self) -> Option<Limits> {
        let concurrency = usize::try_from(self.concurrency.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        self.limits.get().map(|limits| Limits { concurrency, ..*limits })
    }

    pub(super) fn set_running(&self, runs: usize) {
        self.running.store(runs as u64, Ordering::Relaxed);
    }

    pub(super) fn set_concurrency(&self, handlers: usize) {
        self.concurrency.store(handlers as u64, Ordering::Relaxed);
    }

    pub(super) fn set_breaker_open(&self, open: bool) {
        self.breaker_open.store(open, Ordering::Relaxed);
    }

    pub(super) fn set_paused(&self, pauses: IntakePauses) {
        self.paused.store(pauses.0, Ordering::Relaxed);
    }

    pub(super) fn set_oldest_unsettled(&self, received: Option<Instant>) {
        let since = received.map(|at| at.saturating_duration_since(self.epoch).as_micros());
        let us = since.map_or(0, |us| u64::try_from(us).unwrap_or(u64::MAX).saturating_add(1));
        self.oldest_us.store(us, Ordering::Relaxed);
    }

    pub(super) fn set_limits(&self, limits: Limits) {
        self.set_concurrency(limits.concurrency);
        // A pipeline starts once.
        let _ = self.limits.set(limits);
    }
}
