//! One long-lived worker process and its three pipes: [`WorkerProcess`].

use std::io;
use std::pin::pin;
use std::time::Duration;

use onceward::{HandlerError, Message, Scope};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::task::JoinHandle;

use super::protocol::{answer, request};
use crate::handlers::lines::{LastLine, read_lines};
use crate::handlers::process::{ProcessGroup, Program};

/// The longest answer line that is read, in bytes.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;

/// How long a process that has closed its standard output may take to end, and its last words to arrive.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A running worker. Dropping it kills its process group.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    process: ProcessGroup,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: JoinHandle<()>,
    last: LastLine,
    requests: u64,
}

/// What came of one request.
#[derive(Debug)]
pub(super) enum Reply {
    /// The worker has answered, and can be asked again.
    Answered(Result<Option<bytes::Bytes>, HandlerError>),
    /// The worker has broken the protocol or died; it is over.
    Broken(HandlerError),
}

impl WorkerProcess {
    /// Starts one. Its standard error goes to the log, as process number `index`.
    pub(super) fn start(program: &Program, index: usize) -> io::Result<Self> {
        let mut process = ProcessGroup::spawn(&mut program.command())?;
        let id = process.id();
        let missing = || io::Error::other("the process came without pipes");
        let child = process.child();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let last = LastLine::default();
        let (keep, name) = (last.clone(), program.name().to_owned());
        let stderr = tokio::spawn(async move {
            let log = |line: &str| {
                tracing::info!(
                    program = name,
                    process = index,
                    line,
                    "a worker process wrote to standard error"
                );
            };
            read_lines(stderr, &keep, log).await;
        });
        tracing::debug!(program = program.name(), process = index, id, "started a worker process");
        Ok(Self { process, stdin, stdout, stderr, last, requests: 0 })
    }

    /// False once the process has ended by itself.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Gives the worker one message and waits for its answer.
    ///
    /// # Cancel safety
    /// None: after a dropped call the worker must be [killed](Self::kill) or dropped.
    pub(super) async fn ask(&mut self, scope: &Scope, message: &Message) -> Reply {
        self.requests += 1;
        let id = self.requests;
        let line = match request(id, scope, message) {
            Ok(line) => line,
            Err(cause) => {
                return Reply::Answered(Err(HandlerError::permanent(format!(
                    "cannot write it as JSON: {cause}"
                ))));
            }
        };
        let mut got = Vec::new();
        // Both at once: a worker that writes before it has read all would wait for us, and we for it.
        let (sent, read) = {
            let mut write = pin!(send(self.stdin.as_mut(), &line));
            let mut read = pin!(read_line(&mut self.stdout, &mut got));
            tokio::select! {
                biased;
                read = &mut read => (false, read),
                sent = &mut write => match sent {
                    Ok(()) => (true, read.await),
                    Err(cause) => (false, Err(cause)),
                },
            }
        };
        let why = match read {
            Ok(Line::Whole) => match answer(id, &got) {
                Ok(_) if !sent => "answered before it had read the request".to_owned(),
                Ok(answered) => return Reply::Answered(answered),
                Err(why) => why,
            },
            Ok(Line::TooLong) => format!("wrote a line of more than {ANSWER_LIMIT} bytes"),
            Ok(Line::End) => return Reply::Broken(self.died(sent, "closed its standard output").await),
            Err(cause) => return Reply::Broken(self.died(sent, &format!("broke its pipe ({cause})")).await),
        };
        self.kill().await;
        Reply::Broken(
            HandlerError::retry(format!("the worker process {why}; it was killed")).outcome_unknown(),
        )
    }

    /// True if the worker has written more than its answer, which the next message would take for its own.
    pub(super) fn has_said_too_much(&self) -> bool {
        !self.stdout.buffer().is_empty()
    }

    /// Describes the end of a process that stopped talking. A request it cannot have read whole has had no effect.
    async fn died(&mut self, sent: bool, otherwise: &str) -> HandlerError {
        self.stdin = None;
        let what = match tokio::time::timeout(LAST_WORDS, self.process.wait()).await {
            Ok(Ok(status)) => format!("ended ({status}) before it answered"),
            Ok(Err(cause)) => format!("cannot be waited for: {cause}"),
            Err(_) => format!("{otherwise} before it answered, and was killed"),
        };
        self.kill().await;
        let text = format!("the worker process {what}{}", self.last.suffix());
        let error = HandlerError::retry(text);
        if sent { error.outcome_unknown() } else { error }
    }

    /// Kills it and waits until it is gone and its standard error is read.
    pub(super) async fn kill(&mut self) {
        self.process.kill().await;
        let _ = tokio::time::timeout(LAST_WORDS, &mut self.stderr).await;
    }

    /// Closes standard input, which asks the worker to end, and kills it if it has not ended within `limit`. False if
    /// it had to be killed.
    pub(super) async fn shut_down(mut self, limit: Duration) -> bool {
        self.stdin = None;
        let ended = tokio::time::timeout(limit, self.process.wait()).await.is_ok();
        self.kill().await;
        ended
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        self.stderr.abort();
    }
}

async fn send(stdin: Option<&mut ChildStdin>, line: &[u8]) -> io::Result<()> {
    match stdin {
        Some(stdin) => stdin.write_all(line).await,
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

enum Line {
    Whole,
    TooLong,
    End,
}

/// Appends one line to `into`. An end in the middle of a line is an end.
async fn read_line(from: &mut BufReader<ChildStdout>, into: &mut Vec<u8>) -> io::Result<Line> {
    loop {
        let chunk = from.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(Line::End);
        }
        let (used, whole) = match chunk.iter().position(|byte| *byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (chunk.len(), false),
        };
        into.extend_from_slice(&chunk[..used]);
        from.consume(used);
        if whole {
            return Ok(Line::Whole);
        }
        if into.len() > ANSWER_LIMIT {
            return Ok(Line::TooLong);
        }
    }
}
