//! Health of a source, kept current by its adapter: [`SourceHealth`].

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Whether a source can deliver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// It has not been reached yet.
    #[default]
    Starting,
    /// It can.
    Up,
    /// It cannot, for this reason; the adapter tries again by itself.
    Down(String),
}

/// How a source fares. An adapter shares one with the pipeline through [`Consumer::health`](crate::adapter::Consumer::health).
///
/// ```
/// use onceward::telemetry::{SourceHealth, SourceState};
/// let health = SourceHealth::default();
/// health.set_up();
/// health.set_down("the broker refused the connection");
/// health.set_up();
/// assert_eq!(health.state(), SourceState::Up);
/// assert_eq!(health.reconnects(), 1);
/// ```
#[derive(Debug, Default)]
pub struct SourceHealth {
    /// The state, and since when the source is up or down; `None` before either.
    state: Mutex<(SourceState, Option<SystemTime>)>,
    reconnects: AtomicU64,
    /// Milliseconds since 1970; 0: never.
    last_receive_ms: AtomicU64,
    /// One more than the lag; 0: unknown.
    lag: AtomicU64,
    /// One more than the partitions; 0: unknown.
    assigned: AtomicU64,
    lost_to_retention: AtomicU64,
    resets: AtomicU64,
}

impl SourceHealth {
    /// Whether the source can deliver.
    pub fn state(&self) -> SourceState {
        self.state.lock().0.clone()
    }

    /// Since when the source is up or down; `None` while it is starting.
    pub fn since(&self) -> Option<SystemTime> {
        self.state.lock().1
    }

    /// The source can deliver. Answers true if it could not before.
    pub fn set_up(&self) -> bool {
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.0, SourceState::Up);
        if before == SourceState::Up {
            return false;
        }
        state.1 = Some(SystemTime::now());
        if matches!(before, SourceState::Down(_)) {
            self.reconnects.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// The source cannot deliver. Answers true if it could before, so that a repeated failure is logged once.
    pub fn set_down(&self, reason: impl Into<String>) -> bool {
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.0, SourceState::Down(reason.into()));
        if matches!(before, SourceState::Down(_)) {
            return false;
        }
        state.1 = Some(SystemTime::now());
        true
    }

    /// How often it came back after it was down.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Notes that messages have arrived just now.
    pub fn received(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_receive_ms.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When messages last arrived.
    pub fn last_receive(&self) -> Option<SystemTime> {
        match self.last_receive_ms.load(Ordering::Relaxed) {
            0 => None,
            ms => UNIX_EPOCH.checked_add(Duration::from_millis(ms)),
        }
    }

    /// Notes how many messages wait in the broker for this consumer or its group.
    pub fn set_lag(&self, lag: Option<u64>) {
        self.lag.store(lag.map_or(0, |lag| lag.saturating_add(1)), Ordering::Relaxed);
    }

    /// How many messages waited in the broker when that was last looked at: consumer lag or queue depth.
    pub fn lag(&self) -> Option<u64> {
        self.lag.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Notes how many partitions are assigned to this consumer.
    pub fn set_assigned(&self, partitions: usize) {
        self.assigned.store((partitions as u64).saturating_add(1), Ordering::Relaxed);
    }

    /// How many partitions are assigned to this consumer; `None` where a broker assigns none.
    pub fn assigned(&self) -> Option<u64> {
        self.assigned.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Notes messages that the broker's retention removed before they were read.
    pub fn lost_to_retention(&self, messages: u64) {
        self.lost_to_retention.fetch_add(messages, Ordering::Relaxed);
    }

    /// Messages that the broker's retention removed before they were read, as far as that could be seen.
    pub fn lost(&self) -> u64 {
        self.lost_to_retention.load(Ordering::Relaxed)
    }

    /// Notes that a partition started again: its topic was recreated, or its log was truncated.
    pub fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    /// How often partitions started again.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_failure_does_not_change_since_when_it_is_down() {
        let health = SourceHealth::default();
        assert_eq!(health.since(), None);
        assert!(health.set_down("refused"));
        let since = health.since();
        assert!(since.is_some() && !health.set_down("refused again"));
        assert_eq!((health.since(), health.state()), (since, SourceState::Down("refused again".into())));
        assert!(health.set_up() && health.since() >= since && !health.set_up());
    }
}
