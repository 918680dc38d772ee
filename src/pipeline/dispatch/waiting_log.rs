//! The times of the last log lines about waiting deliveries: [`WaitingLog`].

use tokio::time::Instant;

/// The times of the last look and of the last log line of each kind.
#[derive(Default)]
pub(super) struct WaitingLog {
    pub(super) look_at: Option<Instant>,
    pub(super) held_logged_at: Option<Instant>,
    pub(super) full_logged_at: Option<Instant>,
}

impl WaitingLog {
    pub(super) fn next(&self) -> Option<Instant> {
        self.look_at
    }
}
