//! Handles SIGTERM, SIGINT and SIGHUP: the first starts a drain, a later one ends the program.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, Failure};

/// Signals within this time after the first one are the same request: some senders signal a process and its group.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// Catches SIGTERM, SIGINT and SIGHUP from its creation on.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` if the signal was ignored at the start (`nohup`): it stays ignored.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// The system refuses them.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let caught = |kind| {
            signal(kind).map_err(|error| {
                let what =
                    format!("signal handlers cannot be installed ({error}); raise the limits of the process");
                Failure::new(Exit::Failed, what)
            })
        };
        let hang_up =
            if is_ignored(SignalKind::hangup()) { None } else { Some(caught(SignalKind::hangup())?) };
        Ok(Self {
            terminate: caught(SignalKind::terminate())?,
            interrupt: caught(SignalKind::interrupt())?,
            hang_up,
        })
    }

    /// Awaits `work`. The first signal calls `on_first` and fires `shutdown`; a signal more than a second later ends the
    /// program.
    ///
    /// # Errors
    /// The exit code of a second signal: `work` was dropped.
    pub(crate) async fn drain<T>(
        mut self,
        shutdown: &CancellationToken,
        work: impl Future<Output = T>,
        on_first: impl Fn(),
    ) -> Result<T, Exit> {
        tokio::pin!(work);
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                ended = &mut work => return Ok(ended),
                stopped = self.next() => match first {
                    None => {
                        first = Some(Instant::now());
                        on_first();
                        shutdown.cancel();
                    }
                    Some(first) if first.elapsed() < SAME_REQUEST => {}
                    Some(_) => return Err(stopped),
                }
            }
        }
    }

    /// Waits for the next signal, and returns the exit code of a program that it ends.
    pub(crate) async fn next(&mut self) -> Exit {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Exit::Terminated,
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = hang_up => Exit::HungUp,
        }
    }
}

/// True if this program was started with the signal ignored; false if the system does not report it.
fn is_ignored(kind: SignalKind) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // The lowest bit is signal 1.
    u32::try_from(kind.as_raw_value() - 1).is_ok_and(|bit| ignored.checked_shr(bit).unwrap_or(0) & 1 == 1)
}
