//! Long-lived worker process and its pipes: [`WorkerProcess`].

use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::lines::{OutputLine, OutputLines};
use super::options::WorkerOptions;
use crate::handlers::lines::{LastLine, read_lines};
use crate::handlers::process::ProcessGroup;
use crate::handlers::text::printable;

/// The time limit for a process that has closed its standard output to end, and for its last lines to arrive.
const LAST_LINES: Duration = Duration::from_millis(500);

/// The most bytes of an invalid line that are quoted.
const QUOTE_LIMIT: usize = 120;

/// The standard error of a process that has lived for so long is logged, although it has not answered: few such processes can start.
const HEARD_AFTER: Duration = Duration::from_secs(10);

/// A running worker. Dropping it kills its process group.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    process: ProcessGroup,
    stdin: Option<ChildStdin>,
    stdout: OutputLines<ChildStdout>,
    stderr: JoinHandle<()>,
    last: LastLine,
    /// Its standard error is logged; else at `debug` only.
    is_heard: Arc<AtomicBool>,
    index: usize,
    pub(super) started: Instant,
    /// The bytes written to its standard input.
    written: u64,
    stray_lines: u64,
}

/// Which lines of the standard error of a process are logged.
#[derive(Debug)]
struct Hearing {
    is_heard: Arc<AtomicBool>,
    started: Instant,
    left_out: u64,
}

impl Hearing {
    /// `Some` if a line is to be logged, with the number of those left out before it.
    fn allow(&mut self) -> Option<u64> {
        if self.is_heard.load(Ordering::Relaxed) || self.started.elapsed() >= HEARD_AFTER {
            return Some(std::mem::take(&mut self.left_out));
        }
        self.left_out += 1;
        None
    }
}

/// What the pipes of a process have done.
#[derive(Debug)]
pub(super) enum PipeEvent {
    Read(io::Result<OutputLine>),
    /// So many bytes were written.
    Sent(io::Result<usize>),
}

impl WorkerProcess {
    /// Starts a worker. Its standard error is logged, as process number `index`: from the start if `is_heard`, else once it has
    /// answered or lived for [`HEARD_AFTER`]. The first line then logged says how many were left out before.
    pub(super) fn start(options: &WorkerOptions, index: usize, is_heard: bool) -> io::Result<Self> {
        let program = &options.program;
        let mut process = ProcessGroup::spawn(&mut program.command())?;
        let id = process.id();
        let missing = || io::Error::other("the process came without pipes");
        let child = process.child();
        let stdin = child.stdin.take();
        let stdout = OutputLines::new(child.stdout.take().ok_or_else(missing)?, options.line_limit());
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let last = LastLine::default();
        let is_heard = Arc::new(AtomicBool::new(is_heard));
        let (keep, name, started) = (last.clone(), program.name().to_owned(), Instant::now());
        let mut hearing = Hearing { is_heard: Arc::clone(&is_heard), started, left_out: 0 };
        let stderr = tokio::spawn(async move {
            let log = |line: &str| match hearing.allow() {
                Some(0) => tracing::info!(program = name, process = index, line, "worker standard error"),
                Some(left_out) => {
                    tracing::info!(program = name, process = index, line, left_out, "worker standard error");
                }
                None => tracing::debug!(program = name, process = index, line, "worker standard error"),
            };
            read_lines(stderr, &keep, log).await;
        });
        tracing::debug!(program = program.name(), process = index, id, "worker process started");
        Ok(Self {
            process,
            stdin,
            stdout,
            stderr,
            last,
            is_heard,
            index,
            started,
            written: 0,
            stray_lines: 0,
        })
    }

    /// Has its standard error logged.
    pub(super) fn hear(&self) {
        self.is_heard.store(true, Ordering::Relaxed);
    }

    /// False once the process has ended by itself.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Reads the next line and, concurrently, writes `bytes`: a worker that writes before it has read everything would
    /// otherwise deadlock.
    ///
    /// # Cancel safety
    /// Safe: if dropped, nothing was written, and an incomplete line is kept.
    pub(super) async fn exchange(&mut self, bytes: &[u8]) -> PipeEvent {
        let event = tokio::select! {
            biased;
            line = self.stdout.next() => PipeEvent::Read(line),
            sent = send(self.stdin.as_mut(), bytes), if !bytes.is_empty() => PipeEvent::Sent(sent),
        };
        if let PipeEvent::Sent(Ok(more)) = &event {
            self.written += *more as u64;
        }
        event
    }

    /// The bytes written to its standard input.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// How far the worker has read its standard input, in bytes from the start; all that is written if the system does not
    /// report it.
    pub(super) fn read(&self) -> u64 {
        let unread = self.stdin.as_ref().map(rustix::io::ioctl_fionread);
        self.written.saturating_sub(unread.and_then(Result::ok).unwrap_or(0))
    }

    pub(super) fn terminate(&self) {
        self.process.terminate();
    }

    /// The last line of standard error as a suffix for an error text.
    pub(super) fn last_line(&self) -> String {
        self.last.suffix()
    }

    /// Waits for the end of a process; kills it if it does not end, a failure that `otherwise` describes.
    pub(super) async fn end(&mut self, otherwise: &str) -> (String, Option<ExitStatus>) {
        let (what, status) = match tokio::time::timeout(LAST_LINES, self.process.wait()).await {
            Ok(Ok(status)) => (format!("ended ({status})"), Some(status)),
            Ok(Err(cause)) => (format!("cannot be waited for ({cause}) and was killed"), None),
            Err(_) => (format!("{otherwise} and was killed"), None),
        };
        self.kill().await;
        (what, status)
    }

    /// Logs a line that is not an answer: the first one as a warning, the others at `debug`.
    pub(super) fn stray(&mut self, line: &[u8]) {
        let (process, line) = (self.index, printable(line.trim_ascii(), QUOTE_LIMIT));
        if self.stray_lines == 0 {
            tracing::warn!(
                process,
                "a worker process wrote a line to standard output that is no answer; it is ignored, as are later ones \
                 (logged at debug); write diagnostics to standard error"
            );
        }
        self.stray_lines += 1;
        tracing::debug!(process, line, "worker line is not an answer");
    }

    /// Kills the worker and waits until it has ended and its standard error is read.
    pub(super) async fn kill(&mut self) {
        self.process.kill().await;
        if !self.stderr.is_finished() {
            let _ = tokio::time::timeout(LAST_LINES, &mut self.stderr).await;
        }
    }

    /// Closes standard input, which requests the end of the worker; after half of `limit` it gets SIGTERM, and SIGKILL after
    /// `limit`. False if it had to be killed.
    pub(super) async fn shut_down(mut self, limit: Duration) -> bool {
        self.stdin = None;
        let mut ended = tokio::time::timeout(limit / 2, self.process.wait()).await.is_ok();
        if !ended {
            self.process.terminate();
            ended = tokio::time::timeout(limit / 2, self.process.wait()).await.is_ok();
        }
        self.kill().await;
        ended
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        self.stderr.abort();
    }
}

/// Writes a part.
///
/// # Cancel safety
/// Safe: if dropped, nothing was written.
async fn send(stdin: Option<&mut ChildStdin>, bytes: &[u8]) -> io::Result<usize> {
    match stdin {
        Some(stdin) => stdin.write(bytes).await,
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_process_is_heard_once_it_has_answered_or_lived_for_a_while_with_the_number_of_lines_left_out()
    {
        let hearing = || Hearing { is_heard: Arc::default(), started: Instant::now(), left_out: 0 };
        let (mut answers, mut lives) = (hearing(), hearing());
        assert_eq!([answers.allow(), answers.allow(), lives.allow()], [None; 3]);
        answers.is_heard.store(true, Ordering::Relaxed);
        assert_eq!([answers.allow(), answers.allow(), lives.allow()], [Some(2), Some(0), None]);
        tokio::time::advance(HEARD_AFTER).await;
        assert_eq!([lives.allow(), lives.allow()], [Some(2), Some(0)]);
    }
}
