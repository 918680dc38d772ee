//! SIGTERM and SIGINT: the first asks for a drain, the second ends the program.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, Failure};

/// Catches SIGTERM and SIGINT from its making on.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
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
        Ok(Self { terminate: caught(SignalKind::terminate())?, interrupt: caught(SignalKind::interrupt())? })
    }

    /// Awaits `work`. The first signal fires `shutdown`, after `told` has told people; the second one ends the program.
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
        loop {
            tokio::select! {
                biased;
                ended = &mut work => return Ok(ended),
                stopped = self.next() => {
                    if shutdown.is_cancelled() {
                        return Err(stopped);
                    }
                    told();
                    shutdown.cancel();
                }
            }
        }
    }

    /// Waits for the next one, and answers how a program ends that it stops.
    async fn next(&mut self) -> Exit {
        tokio::select! {
            _ = self.terminate.recv() => Exit::Terminated,
            _ = self.interrupt.recv() => Exit::Interrupted,
        }
    }
}
