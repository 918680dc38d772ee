//! Long-lived worker processes that speak JSON lines: [`WorkerHandler`].

mod pool;
mod process;
mod protocol;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onceward::{Error, Handler, HandlerError, Message, Scope};

use super::process::Program;
use pool::{Pool, Seat};
use process::Reply;

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
}

impl WorkerOptions {
    /// One process, restarted after 100 ms to 10 s, results of at most [`RESULT_LIMIT`](super::RESULT_LIMIT).
    pub fn new(scope: Scope, program: Program) -> Self {
        Self {
            scope,
            program,
            processes: 1,
            result_limit: super::RESULT_LIMIT,
            restart_delay: Duration::from_millis(100),
            max_restart_delay: Duration::from_secs(10),
        }
    }
}

/// Gives messages to long-lived processes: one JSON line in, one JSON line out, one message at a time for each process.
///
/// In, with what JSON cannot hold as text in Base64 (`payload_base64`, `headers_base64`, `message_id_base64`) instead:
///
/// ```json
/// {"id": 1, "key": "…", "token": "…", "scope": "billing", "attempt": 1, "fence": 1763718843000000, "generation": 0,
///  "message_id": "m-1", "origin": "orders", "headers": {"traceparent": "…"}, "payload": "…"}
/// ```
///
/// The token is the claim's: a capability, with which the handler may complete the claim itself in a Postgres store
/// (`SELECT onceward.complete(token)`).
///
/// Out, with the same `id`; a result of any JSON type is kept as the JSON text it was, where `retry` is true unless
/// said otherwise and `retry_after_ms` counts up to an hour:
///
/// ```json
/// {"id": 1, "ok": true, "result": {"charged": 12}}
/// {"id": 1, "ok": false, "error": "card expired", "retry": false}
/// {"id": 1, "ok": false, "error": "the bank is closed", "retry_after_ms": 60000}
/// ```
///
/// A process that dies, or writes anything else to standard output, costs the message one attempt, is killed if it
/// still runs, and is started again after a backoff. A cancelled message's process is killed, too, before the handler
/// returns. Standard error goes to the log. Processes are started when the first messages need them, or by
/// [`start`](Self::start), and end when their standard input closes; one that does not end then by itself goes on if
/// this program is killed.
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

    /// Starts all processes, so that no message waits for that. It does not wait until they can answer.
    ///
    /// # Errors
    /// [`HandlerError`] if one cannot be started.
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub async fn start(&self) -> Result<(), HandlerError> {
        let mut seats = Vec::new();
        for _ in 0..self.options.processes.max(1) {
            let mut seat = self.pool.seat().await?;
            seat.process(&self.options).await?;
            seat.answered();
            seats.push(seat);
        }
        Ok(())
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

    async fn ask(&self, seat: &mut Seat, message: &Message) -> Result<Option<Bytes>, HandlerError> {
        let process = seat.process(&self.options).await?;
        match process.ask(&self.options.scope, message).await {
            Reply::Answered(answered) => {
                if process.has_said_too_much() {
                    tracing::warn!("a worker process wrote more than one line for a message; it is killed");
                    process.kill().await;
                    seat.ended(&self.options);
                } else {
                    seat.answered();
                }
                answered.map(|result| self.fitting(result))
            }
            Reply::Broken(error) => {
                seat.ended(&self.options);
                Err(error)
            }
        }
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
        let mut seat = tokio::select! {
            biased;
            () = cancellation.cancelled() => {
                return Err(HandlerError::retry("cancelled before a worker process was free"));
            }
            seat = self.pool.seat() => seat?,
        };
        let answered = tokio::select! {
            biased;
            answered = self.ask(&mut seat, &message) => Some(answered),
            () = cancellation.cancelled() => None,
        };
        match answered {
            Some(answered) => answered,
            None if seat.is_asking() => {
                seat.kill().await;
                let text = "the run was cancelled, and the worker process killed before it answered";
                Err(HandlerError::retry(text).outcome_unknown())
            }
            None => Err(HandlerError::retry("cancelled before the worker process could be started again")),
        }
    }
}
