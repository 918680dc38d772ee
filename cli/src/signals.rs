//! SIGTERM, SIGINT and SIGHUP: the first asks for a drain, a later one ends the program.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, Failure};

/// Signals within this time after the first one are the same request: some senders signal a process and its group.
const SAME: Duration = Duration::from_secs(1);

/// Catches SIGTERM, SIGINT and SIGHUP from its making on.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` where it is ignored already (`nohup`): then it stays so.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// One sentence, if the system has no place for that.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let caught = |kind| {
            signal(kind).map_err(|error| {
                let what = format!("signals cannot be caught ({error}); raise the process's limits");
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

    /// Awaits `work`. The first signal fires `shutdown`, after `told` has told people; one that comes more than a second
    /// later ends the program.
    ///
    /// # Errors
    /// How the program ends, if a second signal came: `work` is dropped.
    pub(crate) async fn drain<T>(
        mut self,
        shutdown: &CancellationToken,
        work: impl Future<Output = T>,
        told: impl Fn(),
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
                        told();
                        shutdown.cancel();
                    }
                    Some(first) if first.elapsed() < SAME => {}
                    Some(_) => return Err(stopped),
                }
            }
        }
    }

    /// Waits for the next one, and answers how a program ends that it stops.
    async fn next(&mut self) -> Exit {
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

/// Whether this program was started with the signal ignored. False where the system does not say.
fn is_ignored(kind: SignalKind) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // The lowest bit is signal 1.
    u32::try_from(kind.as_raw_value() - 1).is_ok_and(|bit| ignored.checked_shr(bit).unwrap_or(0) & 1 == 1)
}
