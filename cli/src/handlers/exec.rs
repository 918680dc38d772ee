//! One process per message: [`ExecHandler`].

use std::io;
use std::pin::{Pin, pin};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use onceward::{Error, Handler, HandlerError, Message, Scope};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{ChildStderr, ChildStdout};
use tokio_util::sync::CancellationToken;

use super::lines::{LastLine, read_lines};
use super::meaning::{ExitCodes, Meaning};
use super::process::{ProcessGroup, Program};
use super::{payload, stop, variables};

/// The time limit for reading the pipes of an ended process: a process that left the group may hold them open.
const PIPE_DRAIN: Duration = Duration::from_millis(500);

/// The options of an [`ExecHandler`].
#[derive(Clone, Debug)]
pub struct ExecOptions {
    /// The scope, passed to the process as `ONCEWARD_SCOPE`.
    pub scope: Scope,
    /// The program, which is run without a shell.
    pub program: Program,
    /// Keeps standard output as the result, up to this many bytes; `None` discards it.
    pub keep_output: Option<usize>,
    /// The meaning of exit codes.
    pub exit_codes: ExitCodes,
    /// The time between SIGTERM and SIGKILL for the process of a cancelled run. It must be shorter than the `cancel_grace` of
    /// the pipeline, after which the run is dropped.
    pub grace: Duration,
    /// Fires when this program shuts down: from then on, a process that a signal ends has not failed.
    pub shutdown: CancellationToken,
}

impl ExecOptions {
    /// No result, the default exit codes, and 4 s after SIGTERM.
    pub fn new(scope: Scope, program: Program) -> Self {
        Self {
            scope,
            program,
            keep_output: None,
            exit_codes: ExitCodes::default(),
            grace: Duration::from_secs(4),
            shutdown: CancellationToken::new(),
        }
    }
}

/// Runs one process per message: the payload on standard input, everything else in `ONCEWARD_*` variables.
///
/// | the process | the message |
/// |---|---|
/// | exits with 0 | is completed |
/// | exits with 65 (EX_DATAERR) | is dead-lettered |
/// | exits with 126 or 127: a shell cannot run or find a command | waits, and uses no attempt |
/// | exits with any other code, 75 (EX_TEMPFAIL) among them | is retried |
/// | is ended by a signal | is retried; its outcome counts as unknown |
/// | ends by SIGTERM, SIGINT or SIGHUP while this program shuts down | is returned, and uses no attempt |
/// | cannot be started | waits, and uses no attempt |
///
/// The meaning of exit codes can be [changed](ExecOptions::exit_codes). The last line of standard error is the text of the
/// error. A process need not read its input, which is a complete file: it is never truncated when this program dies. The
/// process leads a process group; members still running when it ends are killed. When the run is cancelled the group gets
/// SIGTERM, and SIGKILL after the [grace](ExecOptions::grace). The process inherits no open files, and the variables of its
/// [`Environment`](super::Environment) only. Processes that leave the group (`setsid`), or still run when this program is
/// killed, are not reached: the fence lets their sink reject them.
#[derive(Debug)]
pub struct ExecHandler {
    options: ExecOptions,
}

impl ExecHandler {
    /// A handler with these options. It starts no process; see [`check`](Self::check).
    pub fn new(options: ExecOptions) -> Self {
        Self { options }
    }

    /// Checks that the program and, for a script, its interpreter exist, without starting them.
    ///
    /// # Errors
    /// The program is missing or not executable; the error names the fix.
    pub fn check(&self) -> Result<(), Error> {
        self.options.program.check()
    }

    fn name(&self) -> &str {
        self.options.program.name()
    }

    fn start(&self, message: &Message) -> io::Result<ProcessGroup> {
        let mut command = self.options.program.command();
        command.envs(variables::variables(&self.options.scope, message));
        command.stdin(payload::payload_file(message.payload())?);
        if self.options.keep_output.is_none() {
            command.stdout(Stdio::null());
        }
        ProcessGroup::spawn(&mut command)
    }

    async fn verdict(
        &self,
        status: ExitStatus,
        cancelled: bool,
        last: &LastLine,
    ) -> Result<(), HandlerError> {
        let text = |what: String| format!("{:?} {what}{}", self.name(), last.suffix());
        if !cancelled && !status.success() && stop::is_part_of_shutdown(status, &self.options.shutdown).await
        {
            let what = format!("was ended ({status}) while this program shuts down");
            return Err(stop::returned(text(what)));
        }
        let Some(code) = status.code() else {
            let why = if cancelled { ", since the run was cancelled" } else { "" };
            return Err(HandlerError::retry(text(format!("was ended by {status}{why}"))).outcome_unknown());
        };
        let meaning = u8::try_from(code).map_or(Meaning::Retry, |code| self.options.exit_codes.meaning(code));
        match meaning {
            Meaning::Done => Ok(()),
            Meaning::Permanent => {
                Err(HandlerError::permanent(text(format!("refused the message (exit code {code})"))))
            }
            Meaning::Retry => Err(HandlerError::retry(text(format!("failed with exit code {code}")))),
            Meaning::Unavailable => {
                Err(HandlerError::unavailable(text(format!("is not available (exit code {code})"))))
            }
        }
    }
}

impl Handler for ExecHandler {
    type Output = Option<Bytes>;

    async fn handle(&self, message: Message) -> Result<Option<Bytes>, HandlerError> {
        let cancellation = message.cancellation();
        if cancellation.is_cancelled() {
            let text = format!("cancelled before {:?} was started", self.name());
            return Err(HandlerError::unavailable(text));
        }
        let mut process = self.start(&message).map_err(|cause| self.options.program.not_started(&cause))?;
        let last = LastLine::default();
        let child = process.child();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let pipes = pin!(async { tokio::join!(self.read_output(stdout), self.read_stderr(stderr, &last)).0 });
        let mut running = RunningProcess { process, pipes, output: None };
        let ended = tokio::select! {
            biased;
            status = running.ended() => Some(status),
            () = cancellation.cancelled() => None,
        };
        let cancelled = ended.is_none();
        let status = match ended {
            Some(status) => status,
            None => match running.stop(self.options.grace).await {
                Some(status) => status,
                None => {
                    let text = format!("{:?} was killed: the run was cancelled", self.name());
                    return Err(HandlerError::retry(text + &last.suffix()).outcome_unknown());
                }
            },
        };
        if running.output.is_none() {
            running.output = tokio::time::timeout(PIPE_DRAIN, running.pipes).await.ok();
        }
        let status = status.map_err(|cause| {
            let text = format!("cannot wait for {:?}: {cause}", self.name());
            HandlerError::retry(text).outcome_unknown()
        })?;
        self.verdict(status, cancelled, &last).await?;
        Ok(running.output.flatten())
    }
}

/// A process and the reading of its pipes, without which it would block.
struct RunningProcess<'p, P> {
    process: ProcessGroup,
    pipes: Pin<&'p mut P>,
    output: Option<Option<Bytes>>,
}

impl<P: Future<Output = Option<Bytes>>> RunningProcess<'_, P> {
    /// Waits until the process ends.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again.
    async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            tokio::select! {
                biased;
                status = self.process.wait() => return status,
                kept = self.pipes.as_mut(), if self.output.is_none() => self.output = Some(kept),
            }
        }
    }

    /// Terminates the process, and kills it after `grace`. `None`: it was killed.
    async fn stop(&mut self, grace: Duration) -> Option<io::Result<ExitStatus>> {
        self.process.terminate();
        if let Ok(status) = tokio::time::timeout(grace, self.ended()).await {
            return Some(status);
        }
        // It may have ended by itself at the same moment: then its effect may have happened.
        self.process.kill().await.filter(|status| status.code().is_some()).map(Ok)
    }
}

impl ExecHandler {
    async fn read_stderr(&self, stderr: Option<ChildStderr>, last: &LastLine) {
        let Some(stderr) = stderr else { return };
        let program = self.name();
        read_lines(stderr, last, |line| tracing::debug!(program, line, "handler standard error")).await;
    }

    /// Reads the output. `None` if it is too large: a truncated result would be replayed as if it were complete.
    async fn read_output(&self, stdout: Option<ChildStdout>) -> Option<Bytes> {
        let (mut stdout, limit) = (stdout?, self.options.keep_output?);
        let mut output = Vec::new();
        let room = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        (&mut stdout).take(room).read_to_end(&mut output).await.ok()?;
        if output.len() > limit {
            let program = self.name();
            tracing::warn!(
                program,
                limit_bytes = limit,
                "handler output exceeds the result limit; result discarded"
            );
            drain(stdout).await;
            return None;
        }
        Some(output.into())
    }
}

/// Reads and discards, so that the writer does not block on a full pipe.
async fn drain(mut from: impl AsyncRead + Unpin) {
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
}
