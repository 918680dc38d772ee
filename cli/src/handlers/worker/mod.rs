//! Long-lived worker processes that speak JSON lines: [`WorkerHandler`].

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod lines;
mod pool;
mod process;
mod protocol;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use onceward::{Error, Handler, HandlerError, Message, Scope};
use tokio_util::sync::CancellationToken;

use super::process::Program;
use pool::Pool;

/// What a [`WorkerHandler`] needs.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Whose messages these are; given to the process as `scope`.
    pub scope: Scope,
    /// What to run; no shell is put in between.
    pub program: Program,
    /// How many processes there may be, each with one message at a time. 0 is taken for 1.
    pub processes: u32,
    /// The largest result that is kept, in bytes.
    pub result_limit: usize,
    /// How long to wait before a process that died is started again; doubled each time, until one answers.
    pub restart_delay: Duration,
    /// The longest wait before a restart.
    pub max_restart_delay: Duration,
    /// How long a message may take, from when a process begins to read it.
    pub timeout: Duration,
    /// How long a process may take from its start until it reads its first request or, if it is to say so, is ready.
    pub start_timeout: Duration,
    /// The processes write `{"ready":true}` once they can work, and get no request before.
    pub wait_until_ready: bool,
    /// How long a process may take to end after SIGTERM, before SIGKILL, if its message is cancelled or late. Shorter than
    /// the pipeline's `cancel_grace`, after which the run is dropped.
    pub grace: Duration,
    /// Fires when this program shuts down: what is ended by a signal from then on is not to blame.
    pub shutdown: CancellationToken,
}

impl WorkerOptions {
    /// One process, restarted after 100 ms to 10 s, results of at most [`RESULT_LIMIT`](super::RESULT_LIMIT), 30 s for the
    /// start and for each message, 4 s after SIGTERM.
    pub fn new(scope: Scope, program: Program) -> Self {
        Self {
            scope,
            program,
            processes: 1,
            result_limit: super::RESULT_LIMIT,
            restart_delay: Duration::from_millis(100),
            max_restart_delay: Duration::from_secs(10),
            timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(30),
            wait_until_ready: false,
            grace: Duration::from_secs(4),
            shutdown: CancellationToken::new(),
        }
    }
}

/// Gives messages to long-lived processes: one JSON line in, one JSON line out, one message at a time for each process.
///
/// In, with what JSON cannot hold as text in Base64 (`payload_base64`, `headers_base64`, `message_id_base64`) instead; text of
/// 64 KiB and more as well that consists of control characters so far that its escapes would more than double it:
///
/// ```json
/// {"id": 1, "key": "…", "token": "…", "scope": "billing", "attempt": 1, "fence": 1763718843000000, "generation": 0,
///  "message_id": "m-1", "origin": "orders", "headers": {"traceparent": "…"}, "payload": "…"}
/// ```
///
/// The token is the claim's: a capability, with which the handler may complete the claim itself in a Postgres store
/// (`SELECT onceward.complete(token)`).
///
/// Out, with the same `id`; a result of any JSON type is kept as the JSON text it was. A failure is tried again unless it
/// says `"retry": false`; `retry_after_ms` counts up to an hour; with `"unavailable": true` nothing has happened, and the
/// message waits without using an attempt:
///
/// ```json
/// {"id": 1, "ok": true, "result": {"charged": 12}}
/// {"id": 1, "ok": false, "error": "card expired", "retry": false}
/// {"id": 1, "ok": false, "error": "the bank is closed", "retry_after_ms": 60000}
/// {"id": 1, "ok": false, "error": "no connection to the bank", "unavailable": true}
/// ```
///
/// Before its first answer a worker may write `{"ready": true}`, and with [`wait_until_ready`](WorkerOptions::wait_until_ready)
/// it must. Blank lines, space around a line, and lines that are no JSON object with `id` and `ok` are ignored; the last are
/// logged.
///
/// | the process | the message |
/// |---|---|
/// | cannot be started, or ends before it is ready or has read anything of the request | waits, and uses no attempt |
/// | ends before it has read all of the request | is tried again |
/// | ends later, or gives an answer that cannot be understood | is tried again; its outcome counts as unknown |
/// | ends by SIGTERM, SIGINT or SIGHUP while this program shuts down | is given back, and uses no attempt |
/// | does not answer in time, or its message is cancelled | is tried again; it gets SIGTERM, and SIGKILL after the grace |
///
/// The time for a message begins when the process begins to read it: that of its start does not count. A process that ends
/// is started again after a backoff. Standard error goes to the log. Processes are started when the first messages need
/// them, or by [`start`](Self::start), inherit no open files, and end when their standard input closes; one that does not end
/// then by itself goes on if this program is killed.
///
/// Clones share the processes.
#[derive(Clone, Debug)]
pub struct WorkerHandler {
    options: Arc<WorkerOptions>,
    pool: Arc<Pool>,
}

impl WorkerHandler {
    /// A handler for `options`. It starts nothing yet.
    pub fn new(options: WorkerOptions) -> Self {
        let pool = Arc::new(Pool::new(options.processes.max(1)));
        Self { options: Arc::new(options), pool }
    }

    /// Looks for the program, without starting it.
    ///
    /// # Errors
    /// [`onceward::Error`] saying what to correct if it is missing or not executable.
    pub fn check(&self) -> Result<(), Error> {
        self.options.program.check()
    }

    /// Starts all processes, so that no message waits for that, and waits until one is ready, if they are to say so.
    ///
    /// # Errors
    /// [`HandlerError`] if none can be started or gets ready.
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub async fn start(&self) -> Result<(), HandlerError> {
        let mut seats = Vec::new();
        for _ in 0..self.options.processes.max(1) {
            seats.push(self.pool.seat().await?);
        }
        let (mut ready, mut failed) = (false, None);
        // The first poll starts the process, so that all are started before any is waited for.
        for seat in &mut seats {
            match seat.prepare(&self.options).now_or_never() {
                Some(Ok(())) => ready = true,
                Some(Err(error)) => failed = Some(error),
                None => {}
            }
        }
        if ready {
            return Ok(());
        }
        let mut starting: FuturesUnordered<_> =
            seats.iter_mut().map(|seat| seat.prepare(&self.options)).collect();
        while let Some(started) = starting.next().await {
            match started {
                Ok(()) => return Ok(()),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Refuses further messages, waits for those that are being handled, closes every process's standard input and
    /// waits until they have ended; an idle process that has not ended after `limit` is killed. Answers how many those
    /// were. A process that is still handling a message then ends with that message's run.
    ///
    /// # Cancel safety
    /// Dropped, it kills the processes that are left as soon as the handler is dropped.
    pub async fn shut_down(&self, limit: Duration) -> usize {
        self.pool.shut_down(limit).await
    }

    /// All of the result, or nothing of it: a cut result would be replayed as if it were whole.
    fn fitting(&self, result: Option<Bytes>) -> Option<Bytes> {
        let limit = self.options.result_limit;
        let result = result?;
        if result.len() > limit {
            let bytes = result.len();
            tracing::warn!(bytes, limit_bytes = limit, "the worker's result is too large to keep");
            return None;
        }
        Some(result)
    }
}

impl Handler for WorkerHandler {
    type Output = Option<Bytes>;

    async fn handle(&self, message: Message) -> Result<Option<Bytes>, HandlerError> {
        let cancellation = message.cancellation();
        let prepared = async {
            let mut seat = self.pool.seat().await?;
            seat.prepare(&self.options).await?;
            Ok::<_, HandlerError>(seat)
        };
        let mut seat = tokio::select! {
            biased;
            () = cancellation.cancelled() => {
                return Err(HandlerError::unavailable("cancelled before a worker process was ready"));
            }
            seat = prepared => seat?,
        };
        seat.ask(&self.options, &message).await.map(|result| self.fitting(result))
    }
}
