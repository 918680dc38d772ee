//! The store's clock: the host's, in microseconds, which tests can move forward.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use onceward::store::transition::micros;

/// What tells the store the time: the host's clock, moved forward by what tests add. Clones move together.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    ahead: AtomicU64,
    latest: AtomicU64,
}

impl Clock {
    /// The host's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.shared.ahead.fetch_add(micros(by), Ordering::SeqCst);
    }

    /// Microseconds since the epoch. It never goes back within a process, even if the host's clock is set back.
    pub(crate) fn now(&self) -> u64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = micros(since_epoch) + self.shared.ahead.load(Ordering::SeqCst);
        self.shared.latest.fetch_max(now, Ordering::SeqCst).max(now)
    }
}
