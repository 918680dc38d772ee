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
    /// What exit codes mean.
    pub exit_codes: ExitCodes,
    /// How long a process of a cancelled run may take to end after SIGTERM, before SIGKILL. Shorter than the pipeline's
    /// `cancel_grace`, after which the run is dropped.
    pub grace: Duration,
    /// Fires when this program shuts down: what is ended by a signal from then on is not to blame.
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
/// | exits with any other code, 75 (EX_TEMPFAIL) among them | is tried again |
/// | is ended by a signal | is tried again; its outcome counts as unknown |
/// | ends by SIGTERM, SIGINT or SIGHUP while this program shuts down | is given back, and uses no attempt |
/// | cannot be started | waits, and uses no attempt |
///
/// What exit codes mean can be [changed](ExecOptions::exit_codes). The last line of standard error is the error's text. A
/// process need not read its input, which is a file and whole from the start: that of a handler whose parent dies never
/// ends early. The process leads a process group of its own: what it started and left running is killed when it ends. When
/// the run is cancelled all of the group gets SIGTERM, and SIGKILL after the [grace](ExecOptions::grace). It inherits no
/// open files, and of the environment what its [`Environment`](super::Environment) passes. Processes that leave the group (`setsid`) are out of reach, and so are those still running when this program
/// is itself killed: the fence lets their sink refuse them.
#[derive(Debug)]
pub struct ExecHandler {
    options: ExecOptions,
}

impl ExecHandler {
    /// A handler for `options`. It starts nothing; see [`check`](Self::check).
    pub fn new(options: ExecOptions) -> Self {
        Self { options }
    }

    /// Looks for the program and, if it is a script, for its interpreter, without starting it.
    ///
    /// # Errors
    /// [`onceward::Error`] saying what to correct if it is missing or cannot be run.
    pub fn check(&self) -> Result<(), Error> {
        self.options.program.check()
    }

    fn name(&self) -> &str {
        self.options.program.name()
    }

    fn start(&self, message: &Message) -> io::Result<ProcessGroup> {
        let mut command = self.options.program.command();
        command.envs(variables::variables(&self.options.scope, message));
        command.stdin(payload::whole(message.payload())?);
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
            return Err(stop::given_back(text(what)));
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
        let pipes = pin!(async { tokio::join!(self.keep(stdout), self.listen(stderr, &last)).0 });
        let mut running = Running { process, pipes, output: None };
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
            running.output = tokio::time::timeout(LAST_WORDS, running.pipes).await.ok();
        }
        let status = status.map_err(|cause| {
            let text = format!("cannot wait for {:?}: {cause}", self.name());
            HandlerError::retry(text).outcome_unknown()
        })?;
        self.verdict(status, cancelled, &last).await?;
        Ok(running.output.flatten())
    }
}

/// A process, and the reading of its pipes, without which it could not go on.
struct Running<'p, P> {
    process: ProcessGroup,
    pipes: Pin<&'p mut P>,
    output: Option<Option<Bytes>>,
}

impl<P: Future<Output = Option<Bytes>>> Running<'_, P> {
    /// Waits for its end. It may be dropped and called again.
    async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            tokio::select! {
                biased;
                status = self.process.wait() => return status,
                kept = self.pipes.as_mut(), if self.output.is_none() => self.output = Some(kept),
            }
        }
    }

    /// Asks it to end, and kills it after `grace`. `None`: it was killed.
    async fn stop(&mut self, grace: Duration) -> Option<io::Result<ExitStatus>> {
        self.process.terminate();
        if let Ok(status) = tokio::time::timeout(grace, self.ended()).await {
            return Some(status);
        }
        // It may have ended by itself in the same moment, and then its effect may have happened.
        self.process.kill().await.filter(|status| status.code().is_some()).map(Ok)
    }
}

impl ExecHandler {
    async fn listen(&self, stderr: Option<ChildStderr>, last: &LastLine) {
        let Some(stderr) = stderr else { return };
        let program = self.name();
        read_lines(stderr, last, |line| {
            tracing::debug!(program, line, "the handler wrote to standard error")
        })
        .await;
    }

    /// All of the output, or nothing of it: a cut result would be replayed as if it were whole.
    async fn keep(&self, stdout: Option<ChildStdout>) -> Option<Bytes> {
        let (mut stdout, limit) = (stdout?, self.options.keep_output?);
        let mut output = Vec::new();
        let room = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        (&mut stdout).take(room).read_to_end(&mut output).await.ok()?;
        if output.len() > limit {
            let program = self.name();
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
