//! Distinguishes a process that a shutdown of the service has ended from a failed one.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use onceward::HandlerError;
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

/// The most time by which a process may end before our own signal arrives: a supervisor signals one process after the other.
const SIGNAL_LAG: Duration = Duration::from_secs(1);

/// Signals that request the end of a process. Shells and others then exit with 128 plus the number of the signal.
const TERMINATION: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::HUP];

/// True if a process ended because the whole service is being stopped. A supervisor may signal each process separately; if
/// the process ends first, our own signal is awaited for at most a second.
pub(super) async fn is_part_of_shutdown(status: ExitStatus, shutdown: &CancellationToken) -> bool {
    let was_signalled = TERMINATION.iter().any(|signal| {
        let number = signal.as_raw();
        status.signal() == Some(number) || status.code() == Some(128 + number)
    });
    was_signalled && tokio::time::timeout(SIGNAL_LAG, shutdown.cancelled()).await.is_ok()
}

/// The error of such a process: the message is returned without an attempt. Its effect may have happened: the process was
/// interrupted, also if a shell reports it as an exit code.
pub(super) fn returned(text: String) -> HandlerError {
    HandlerError::unavailable(text).outcome_unknown()
}
