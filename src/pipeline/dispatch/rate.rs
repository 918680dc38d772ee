//! The limit of runs started per second: [`RateLimit`].

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket as a time: up to when the runs that were started have used up what the rate allows. In whole nanoseconds, so
/// that a timer that waits for the next run never wakes just before it.
#[derive(Debug)]
pub(super) struct RateLimit {
    /// The share of one run.
    interval: Duration,
    /// How much may be unused: a tenth of a second, and at least one run.
    burst: Duration,
    used_up_to: Instant,
}

impl RateLimit {
    pub(super) fn new(per_second: f64, now: Instant) -> Self {
        let interval = Duration::from_secs_f64(1.0 / per_second).max(Duration::from_nanos(1));
        let burst = Duration::from_millis(100).max(interval);
        Self { interval, burst, used_up_to: now.checked_sub(burst).unwrap_or(now) }
    }

    /// How many runs may start.
    pub(super) fn available(&mut self, now: Instant) -> usize {
        if let Some(earliest) = now.checked_sub(self.burst) {
            self.used_up_to = self.used_up_to.max(earliest);
        }
        let unused = now.saturating_duration_since(self.used_up_to);
        usize::try_from(unused.as_nanos() / self.interval.as_nanos()).unwrap_or(usize::MAX)
    }

    /// When the next run may start, if none may now.
    pub(super) fn next_at(&self) -> Instant {
        self.used_up_to + self.interval
    }

    pub(super) fn take(&mut self, runs: usize) {
        self.used_up_to += self.share(runs);
    }

    /// Takes back what was taken for deliveries that did not run.
    pub(super) fn give_back(&mut self, runs: usize) {
        self.used_up_to = self.used_up_to.checked_sub(self.share(runs)).unwrap_or(self.used_up_to);
    }

    fn share(&self, runs: usize) -> Duration {
        self.interval.saturating_mul(u32::try_from(runs).unwrap_or(u32::MAX))
    }
}
