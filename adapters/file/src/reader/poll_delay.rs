//! Delays between polls of a file: [`PollDelay`].

use std::thread;
use std::time::Duration;

/// The first and the longest delay between polls of a file that does not grow.
pub(crate) const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// A delay that doubles while nothing changes.
pub(crate) struct PollDelay {
    next: Duration,
    /// Whether the long delay after a rotation has passed.
    pub(crate) rotated: bool,
}

impl Default for PollDelay {
    fn default() -> Self {
        Self { next: PAUSES.0, rotated: false }
    }
}

impl PollDelay {
    pub(crate) fn reset(&mut self) {
        self.next = PAUSES.0;
        self.rotated = false;
    }

    pub(crate) fn sleep(&mut self) {
        thread::sleep(self.next);
        self.next = (self.next * 2).min(PAUSES.1);
    }
}
