//! Long-lived worker process and its pipes: [`WorkerProcess`].

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use onceward::{HandlerError, Message};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::lines::{OutputLine, OutputLines};
use super::options::WorkerOptions;
use super::protocol::{Said, request, said};
use crate::handlers::lines::{LastLine, read_lines};
use crate::handlers::process::ProcessGroup;
use crate::handlers::stop;
use crate::handlers::text::printable;

/// The time limit for a process that has closed its standard output to end, and for its last lines to arrive.
const LAST_LINES: Duration = Duration::from_millis(500);

/// The interval of checks whether a new process has begun to read its first request.
const READ_CHECK: Duration = Duration::from_millis(20);

/// The most bytes of an invalid line that are quoted.
const QUOTE_LIMIT: usize = 120;

/// A running worker. Dropping it kills its process group.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    process: ProcessGroup,
    stdin: Option<ChildStdin>,
    stdout: OutputLines<ChildStdout>,
    stderr: JoinHandle<()>,
    last: LastLine,
    index: usize,
    started: Instant,
    requests: u64,
    /// It has reported that it is ready.
    is_ready: bool,
    /// It has begun to read a request: from now on its time counts against the limit of the handler.
    reads: bool,
    stray_lines: u64,
}

/// The result of one request.
#[derive(Debug)]
pub(super) enum Reply {
    /// The worker has answered, and can be used again.
    Answered(Result<Option<bytes::Bytes>, HandlerError>),
    /// The worker answered while it was being stopped; it has ended.
    Last(Result<Option<bytes::Bytes>, HandlerError>),
    /// The worker violated the protocol, died or was stopped; it has ended.
    Broken(HandlerError),
}

/// Why a worker is stopped during a request.
#[derive(Clone, Copy)]
enum Stop {
    Cancelled,
    Late,
}

enum WorkerEvent {
    Read(io::Result<OutputLine>),
    Sent(io::Result<usize>),
    Cancelled,
    Tick,
}

impl WorkerProcess {
    /// Starts a worker. Its standard error is logged, as process number `index`.
    pub(super) fn start(options: &WorkerOptions, index: usize) -> io::Result<Self> {
        let program = &options.program;
        let mut process = ProcessGroup::spawn(&mut program.command())?;
        let id = process.id();
        let missing = || io::Error::other("the process came without pipes");
        let child = process.child();
        let stdin = child.stdin.take();
        let stdout = OutputLines::new(child.stdout.take().ok_or_else(missing)?);
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let last = LastLine::default();
        let (keep, name) = (last.clone(), program.name().to_owned());
        let stderr = tokio::spawn(async move {
            let log = |line: &str| {
                tracing::info!(program = name, process = index, line, "worker standard error");
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
            index,
            started: Instant::now(),
            requests: 0,
            is_ready: false,
            reads: false,
            stray_lines: 0,
        })
    }

    /// False once the process has ended by itself.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// True once it has reported that it is ready, or has read a request.
    pub(super) fn is_warm(&self) -> bool {
        self.is_ready || self.reads
    }

    /// Waits until the worker reports that it is ready. An error means that it has ended without an effect.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again.
    pub(super) async fn ready(&mut self, options: &WorkerOptions) -> Result<(), HandlerError> {
        while !self.is_ready {
            let until = self.started + options.start_timeout;
            let line = match tokio::time::timeout_at(until, self.stdout.next()).await {
                Ok(Ok(OutputLine::Whole(line))) => line,
                Ok(Ok(OutputLine::TooLong)) => {
                    self.kill().await;
                    let text =
                        "a worker process wrote a line without an end before it was ready; it was killed";
                    return Err(HandlerError::unavailable(text));
                }
                Ok(Ok(OutputLine::End) | Err(_)) => {
                    let (what, _) = self.end("closed its standard output").await;
                    let text = format!("a worker process {what} before it was ready{}", self.last.suffix());
                    return Err(HandlerError::unavailable(text));
                }
                Err(_) => {
                    self.kill().await;
                    return Err(HandlerError::unavailable(format!(
                        "a worker process did not write {{\"ready\":true}} within the start timeout of {:?}, and was \
                         killed{}",
                        options.start_timeout,
                        self.last.suffix()
                    )));
                }
            };
            match said(0, &line) {
                Said::Ready => self.is_ready = true,
                Said::Nothing => {}
                _ => self.stray(&line),
            }
        }
        Ok(())
    }

    /// Passes one message to the worker and waits for its answer. The time until a new worker begins to read does not count
    /// against the limit of the handler.
    ///
    /// # Cancel safety
    /// Not cancel safe: after a dropped call the worker must be [killed](Self::kill) or dropped.
    pub(super) async fn ask(&mut self, options: &WorkerOptions, message: &Message) -> Reply {
        self.requests += 1;
        let id = self.requests;
        let mut request = match request(id, &options.scope, message) {
            Ok(line) => line,
            Err(cause) => {
                return Reply::Answered(Err(HandlerError::permanent(format!(
                    "cannot write it as JSON: {cause}"
                ))));
            }
        };
        let cancellation = message.cancellation();
        let (mut written, length) = (0, request.len());
        let mut begun = self.reads.then(Instant::now);
        let mut stopping: Option<(Stop, Instant)> = None;
        loop {
            let until = match (stopping, begun) {
                (Some((_, killed_at)), _) => killed_at,
                (None, Some(begun)) => begun + options.timeout,
                (None, None) => (Instant::now() + READ_CHECK).min(self.started + options.start_timeout),
            };
            // Concurrently: a worker that writes before it has read everything would otherwise deadlock.
            let event = tokio::select! {
                biased;
                line = self.stdout.next() => WorkerEvent::Read(line),
                sent = send(self.stdin.as_mut(), request.get(written..).unwrap_or_default()), if written < length => {
                    WorkerEvent::Sent(sent)
                }
                () = cancellation.cancelled(), if stopping.is_none() => WorkerEvent::Cancelled,
                () = tokio::time::sleep_until(until) => WorkerEvent::Tick,
            };
            match event {
                WorkerEvent::Sent(Ok(more @ 1..)) => {
                    written += more;
                    if written == length {
                        // The request is not needed while the worker works.
                        request = Vec::new();
                    }
                }
                WorkerEvent::Sent(_) => return self.died(options, written, length, "broke its pipe").await,
                WorkerEvent::Read(Ok(OutputLine::Whole(line))) => match said(id, &line) {
                    Said::Nothing => {}
                    Said::Ready => self.is_ready = true,
                    Said::Stray => self.stray(&line),
                    Said::Answer(_) if written < length => {
                        return self.broken("answered before it had read the request").await;
                    }
                    Said::Answer(answer) => {
                        self.reads = true;
                        if stopping.is_none() {
                            return Reply::Answered(answer);
                        }
                        self.kill().await;
                        return Reply::Last(answer);
                    }
                    Said::Wrong(why) => return self.broken(&why).await,
                },
                WorkerEvent::Read(Ok(OutputLine::TooLong)) => {
                    return self
                        .broken(&format!("wrote a line of more than {} bytes", OutputLine::LIMIT))
                        .await;
                }
                WorkerEvent::Read(Ok(OutputLine::End)) => {
                    return match stopping {
                        Some((stop, _)) => self.stopped(options, stop).await,
                        None => self.died(options, written, length, "closed its standard output").await,
                    };
                }
                WorkerEvent::Read(Err(_)) => {
                    return self.died(options, written, length, "broke its pipe").await;
                }
                WorkerEvent::Cancelled | WorkerEvent::Tick
                    if stopping.is_none() && self.unread(written) == written =>
                {
                    // The request was not read, so there was no effect.
                    let why = match (&event, begun) {
                        (WorkerEvent::Cancelled, _) => {
                            "had not begun to read the request when the run was cancelled"
                        }
                        (_, Some(begun)) if begun.elapsed() >= options.timeout => {
                            "did not read the request within the handler's timeout"
                        }
                        (_, None) if self.started.elapsed() >= options.start_timeout => {
                            "did not begin to read its first request within its start timeout"
                        }
                        _ => continue,
                    };
                    return self.unused(written, why).await;
                }
                WorkerEvent::Tick if begun.is_none() => {
                    self.reads = true;
                    begun = Some(Instant::now());
                }
                WorkerEvent::Cancelled | WorkerEvent::Tick => match stopping {
                    Some((stop, _)) => return self.stopped(options, stop).await,
                    None => {
                        let stop =
                            if matches!(event, WorkerEvent::Tick) { Stop::Late } else { Stop::Cancelled };
                        self.process.terminate();
                        stopping = Some((stop, Instant::now() + options.grace));
                    }
                },
            }
        }
    }

    /// The written bytes that the worker has not read; 0 if the system does not report it.
    fn unread(&self, written: usize) -> usize {
        let unread = self.stdin.as_ref().map(rustix::io::ioctl_fionread);
        unread.and_then(Result::ok).and_then(|unread| usize::try_from(unread).ok()).unwrap_or(0).min(written)
    }

    /// Kills a worker that has not read its request.
    async fn unused(&mut self, written: usize, why: &str) -> Reply {
        self.kill().await;
        let text = format!("the worker process {why}; it was killed{}", self.last.suffix());
        // It may have read it just before it was killed.
        if self.unread(written) == written {
            return Reply::Broken(HandlerError::unavailable(text));
        }
        Reply::Broken(HandlerError::retry(text).outcome_unknown())
    }

    /// Stops a worker, and kills it if it does not answer or end in time.
    async fn stopped(&mut self, options: &WorkerOptions, stop: Stop) -> Reply {
        self.kill().await;
        let text = match stop {
            Stop::Cancelled => {
                "the run was cancelled, and the worker process ended before it answered".to_owned()
            }
            Stop::Late => {
                format!("the worker process did not answer within {:?} and was ended", options.timeout)
            }
        };
        let error = HandlerError::retry(text + &self.last.suffix()).outcome_unknown();
        Reply::Broken(if matches!(stop, Stop::Late) { error.timed_out() } else { error })
    }

    async fn broken(&mut self, why: &str) -> Reply {
        self.kill().await;
        let text = format!("the worker process {why}; it was killed");
        Reply::Broken(HandlerError::retry(text).outcome_unknown())
    }

    /// The error of a process that ended. A request that it cannot have read completely had no effect, and a request of which
    /// it has read nothing did not cause the end.
    async fn died(
        &mut self,
        options: &WorkerOptions,
        written: usize,
        length: usize,
        otherwise: &str,
    ) -> Reply {
        let unread = self.unread(written);
        let (what, status) = self.end(otherwise).await;
        if written == 0 || unread == written {
            let text = format!("the worker process {what} before it read the request{}", self.last.suffix());
            return Reply::Broken(HandlerError::unavailable(text));
        }
        let text = format!("the worker process {what} before it answered{}", self.last.suffix());
        if let Some(status) = status
            && stop::is_part_of_shutdown(status, &options.shutdown).await
        {
            return Reply::Broken(stop::returned(text + "; this program shuts down"));
        }
        let error = HandlerError::retry(text);
        let read_whole = written == length && unread == 0;
        Reply::Broken(if read_whole { error.outcome_unknown() } else { error })
    }

    /// Waits for the end of a process; kills it if it does not end, a failure that `otherwise` describes.
    async fn end(&mut self, otherwise: &str) -> (String, Option<ExitStatus>) {
        let (what, status) = match tokio::time::timeout(LAST_LINES, self.process.wait()).await {
            Ok(Ok(status)) => (format!("ended ({status})"), Some(status)),
            Ok(Err(cause)) => (format!("cannot be waited for ({cause}) and was killed"), None),
            Err(_) => (format!("{otherwise} and was killed"), None),
        };
        self.kill().await;
        (what, status)
    }

    /// Logs a line that is not an answer: the first one as a warning, the others at `debug`.
    fn stray(&mut self, line: &[u8]) {
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
        let _ = tokio::time::timeout(LAST_LINES, &mut self.stderr).await;
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
