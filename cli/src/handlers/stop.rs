//! Distinguishes a process that a shutdown of the whole service has ended from one that has failed.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use onceward::HandlerError;
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

/// How long the end of a process may be ahead of our own signal: a supervisor sends it to one process after the other.
const AHEAD: Duration = Duration::from_secs(1);

/// Signals that ask a process to end. Shells and others exit with 128 and the signal's number.
const ASKING: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::HUP];

/// Whether a process ended because somebody asks all of this service to end. A supervisor may send the signal to each
/// process by itself; where the process is faster than our own signal, that is waited for, a second at most.
pub(super) async fn is_part_of_shutdown(status: ExitStatus, shutdown: &CancellationToken) -> bool {
    let asked = ASKING.iter().any(|signal| {
        let number = signal.as_raw();
        status.signal() == Some(number) || status.code() == Some(128 + number)
    });
    asked && tokio::time::timeout(AHEAD, shutdown.cancelled()).await.is_ok()
}

/// The message of a process that ended so: given back without an attempt. Its effect may have happened: a shell that exits
/// with the signal's number was ended in the middle as well.
pub(super) fn given_back(text: String) -> HandlerError {
    HandlerError::unavailable(text).outcome_unknown()
}
