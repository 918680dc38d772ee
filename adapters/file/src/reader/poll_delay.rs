//! Pauses between two looks at a file: [`PollDelay`].

use std::thread;
use std::time::Duration;

/// The first and the longest pause between two looks at a file that does not grow.
pub(crate) const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// Pauses that grow while nothing happens.
pub(crate) struct PollDelay {
    next: Duration,
    /// The last one was long, because another file had taken the name.
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
