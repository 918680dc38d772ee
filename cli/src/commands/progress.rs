//! Progress of a command on many messages: [`PacedProgress`].

use std::io::{self, IsTerminal};
use std::time::Duration;

use tokio::time::Instant;

use crate::output::complain;

/// The interval between lines.
const INTERVAL: Duration = Duration::from_secs(2);

/// Prints a line to standard error now and then, if that is a terminal, and keeps a rate.
pub(super) struct PacedProgress {
    is_shown: bool,
    printed: Instant,
    began: Instant,
    /// Letters per second.
    rate: Option<u32>,
    /// Letters so far, for the rate.
    letters: u64,
}

impl PacedProgress {
    pub(super) fn new(rate: Option<u32>) -> Self {
        let now = Instant::now();
        Self { is_shown: io::stderr().is_terminal(), printed: now, began: now, rate, letters: 0 }
    }

    /// The most letters of one step: a tenth of a second's.
    pub(super) fn step(&self, most: usize) -> usize {
        self.rate.map_or(most, |rate| most.min((rate as usize / 10).max(1)))
    }

    /// Counts letters, and returns when the next may follow.
    pub(super) fn add(&mut self, letters: usize) -> Instant {
        self.letters += letters as u64;
        match self.rate {
            None => Instant::now(),
            #[allow(clippy::cast_precision_loss, reason = "at most a million letters")]
            Some(rate) => self.began + Duration::from_secs_f64(self.letters as f64 / f64::from(rate)),
        }
    }

    pub(super) fn print(&mut self, line: impl std::fmt::Display) {
        if self.is_shown && self.printed.elapsed() >= INTERVAL {
            self.printed = Instant::now();
            complain(format_args!("{line} after {} s", self.began.elapsed().as_secs()));
        }
    }
}
