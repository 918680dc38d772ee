//! One process per message: [`ExecHandler`].

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use onceward::{Error, Handler, HandlerError, Message, Scope};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{ChildStderr, ChildStdout};

use super::lines::{LastLine, read_lines};
use super::process::{ProcessGroup, Program};
use super::{payload, variables};

/// EX_DATAERR of sysexits.h: the input is wrong and stays so.
const EX_DATAERR: i32 = 65;

/// How long the pipes of an ended process are read on: a process that left the group may hold them open for ever.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What an [`ExecHandler`] needs.
#[derive(Clone, Debug)]
pub struct ExecOptions {
    /// Whose messages these are; given to the process as `ONCEWARD_SCOPE`.
    pub scope: Scope,
    /// What to run; no shell is put in between.
    pub program: Program,
    /// Keeps standard output as the result, up to so many bytes; `None`: it is thrown away.
    pub keep_output: Option<usize>,
}

/// Runs one process per message: the payload on standard input, everything else in `ONCEWARD_*` variables.
///
/// | the process | the message |
/// |---|---|
/// | exits with 0 | is completed |
/// | exits with 65 (EX_DATAERR) | is dead-lettered |
/// | exits with any other code, 75 (EX_TEMPFAIL) among them | is tried again |
/// | is ended by a signal | is tried again; its outcome counts as unknown |
/// | cannot be started | is tried again |
///
/// The last line of standard error is the error's text. A process need not read its input, which is a file and whole
/// from the start: that of a handler whose parent dies never ends early. The process leads a process group of
/// its own: what it started and left running is killed when it ends, and all of it when the run is cancelled.
/// Processes that leave the group (`setsid`) are out of reach, and so are those still running when this program is
/// itself killed: the fence lets their sink refuse them.
#[derive(Debug)]
pub struct ExecHandler {
    scope: Scope,
    program: Program,
    inherited: Vec<OsString>,
    keep_output: Option<usize>,
}

impl ExecHandler {
    /// A handler for `options`. It starts nothing; see [`check`](Self::check).
    pub fn new(options: ExecOptions) -> Self {
        let ExecOptions { scope, program, keep_output } = options;
        Self { scope, program, inherited: variables::inherited(), keep_output }
    }

    /// Looks for the program, without starting it.
    ///
    /// # Errors
    /// [`onceward::Error`] saying what to correct if it is missing or not executable.
    pub fn check(&self) -> Result<(), Error> {
        self.program.check()
    }

    fn start(&self, message: &Message) -> io::Result<ProcessGroup> {
        let mut command = self.program.command();
        for name in &self.inherited {
            command.env_remove(name);
        }
        command.envs(variables::variables(&self.scope, message));
        command.stdin(payload::whole(message.payload())?);
        if self.keep_output.is_none() {
            command.stdout(Stdio::null());
        }
        ProcessGroup::spawn(&mut command)
    }

    fn verdict(&self, status: ExitStatus, last: &LastLine) -> Result<(), HandlerError> {
        let text = |what: String| format!("{:?} {what}{}", self.program.name(), last.suffix());
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(()),
            (Some(EX_DATAERR), _) => {
                Err(HandlerError::permanent(text(format!("refused the message (exit code {EX_DATAERR})"))))
            }
            (Some(code), _) => Err(HandlerError::retry(text(format!("failed with exit code {code}")))),
            (None, _) => Err(HandlerError::retry(text(format!("was ended by {status}"))).outcome_unknown()),
        }
    }
}

impl Handler for ExecHandler {
    type Output = Option<Bytes>;

    async fn handle(&self, message: Message) -> Result<Option<Bytes>, HandlerError> {
        let cancellation = message.cancellation();
        if cancellation.is_cancelled() {
            return Err(HandlerError::retry(format!(
                "cancelled before {:?} was started",
                self.program.name()
            )));
        }
        let mut process =
            self.start(&message).map_err(|cause| HandlerError::retry(self.program.cannot_start(&cause)))?;
        let last = LastLine::default();
        let child = process.child();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut pipes = pin!(async { tokio::join!(self.keep(stdout), self.listen(stderr, &last)).0 });
        let mut output = None;
        let status = {
            let mut ended = pin!(process.wait());
            loop {
                tokio::select! {
                    biased;
                    status = &mut ended => break Some(status),
                    () = cancellation.cancelled() => break None,
                    kept = &mut pipes, if output.is_none() => output = Some(kept),
                }
            }
        };
        let Some(status) = status else {
            // It may have succeeded in the same moment, and then its effect has happened.
            if process.kill().await.is_some_and(|status| status.success()) {
                return Ok(None);
            }
            let text = format!("{:?} was killed: the run was cancelled", self.program.name());
            return Err(HandlerError::retry(text + &last.suffix()).outcome_unknown());
        };
        if output.is_none() {
            output = tokio::time::timeout(LAST_WORDS, pipes).await.ok();
        }
        let status = status.map_err(|cause| {
            let text = format!("cannot wait for {:?}: {cause}", self.program.name());
            HandlerError::retry(text).outcome_unknown()
        })?;
        self.verdict(status, &last)?;
        Ok(output.flatten())
    }
}

impl ExecHandler {
    async fn listen(&self, stderr: Option<ChildStderr>, last: &LastLine) {
        let Some(stderr) = stderr else { return };
        let program = self.program.name();
        read_lines(stderr, last, |line| {
            tracing::debug!(program, line, "the handler wrote to standard error")
        })
        .await;
    }

    /// All of the output, or nothing of it: a cut result would be replayed as if it were whole.
    async fn keep(&self, stdout: Option<ChildStdout>) -> Option<Bytes> {
        let (mut stdout, limit) = (stdout?, self.keep_output?);
        let mut output = Vec::new();
        let room = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        (&mut stdout).take(room).read_to_end(&mut output).await.ok()?;
        if output.len() > limit {
            let program = self.program.name();
            tracing::warn!(
                program,
                limit_bytes = limit,
                "the handler's output is too large to keep as a result"
            );
            drain(stdout).await;
            return None;
        }
        Some(output.into())
    }
}

/// Reads on, so that the writer does not block on a full pipe.
async fn drain(mut from: impl AsyncRead + Unpin) {
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
}
