//! Long-lived worker processes that speak JSON lines: [`WorkerHandler`].

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod lines;
mod options;
mod pool;
mod process;
mod protocol;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use onceward::{Error, Handler, HandlerError, Message};

pub use options::WorkerOptions;
use pool::WorkerPool;

/// Passes messages to long-lived processes: one JSON line in, one JSON line out. Each process handles its
/// messages one after the other.
///
/// In, with what JSON cannot hold as text in Base64 (`payload_base64`, `headers_base64`, `message_id_base64`) instead; text of
/// 64 KiB and more as well that consists of control characters so far that its escapes would more than double it:
///
/// ```json
/// {"id": 1, "key": "…", "token": "…", "scope": "billing", "attempt": 1, "fence": 1763718843000000, "generation": 0,
///  "message_id": "m-1", "origin": "orders", "headers": {"traceparent": "…"}, "payload": "…"}
/// ```
///
/// The token is the claim's: a capability, with which the handler may complete the claim itself in a store with transactions
/// (`SELECT onceward.complete(token)`).
///
/// Out, with the same `id`; a result of any JSON type is kept as its JSON text. A failure is retried unless it has
/// `"retry": false`; `retry_after_ms` counts up to an hour; with `"unavailable": true` nothing has happened, and the
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
/// it must. Blank lines, space around a line, and lines that are not JSON objects with `id` and `ok` are ignored; the latter are
/// logged.
///
/// | the process | the message |
/// |---|---|
/// | cannot be started, or ends before it is ready or has read anything of the request | waits, and uses no attempt |
/// | ends before it has read all of the request | is retried |
/// | ends later, or writes an invalid answer | is retried; its outcome counts as unknown |
/// | ends by SIGTERM, SIGINT or SIGHUP while this program shuts down | is returned, and uses no attempt |
/// | does not answer in time, or its message is cancelled | is retried; the process gets SIGTERM, and SIGKILL after the grace |
///
/// The time limit of a message begins when the process begins to read it; the start of the process does not count. A process
/// that ends is restarted after a backoff. Standard error is logged. Processes are started when the first messages need
/// them, or by [`start`](Self::start), inherit no open files, and must end when their standard input closes: a process that
/// does not, survives if this program is killed.
///
/// Clones share the processes.
#[derive(Clone, Debug)]
pub struct WorkerHandler {
    options: Arc<WorkerOptions>,
    pool: Arc<WorkerPool>,
}

impl WorkerHandler {
    /// A handler with these options. It starts no process.
    pub fn new(options: WorkerOptions) -> Self {
        let pool = Arc::new(WorkerPool::new(options.processes.max(1)));
        Self { options: Arc::new(options), pool }
    }

    /// Checks that the program exists, without starting it.
    ///
    /// # Errors
    /// The program is missing or not executable; the error names the fix.
    pub fn check(&self) -> Result<(), Error> {
        self.options.program.check()
    }

    /// Starts all processes in advance and, with `wait_until_ready`, waits until one is ready.
    ///
    /// # Errors
    /// No process can be started, or none becomes ready.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again.
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

    /// Refuses further messages, waits for the running ones, closes the standard input of every process and waits until it
    /// has ended; an idle process that has not ended after `limit` is killed. Returns the number of killed processes. A
    /// process that is still handling a message ends with the run of that message.
    ///
    /// # Cancel safety
    /// If dropped, the remaining processes are killed when the handler is dropped.
    pub async fn shut_down(&self, limit: Duration) -> usize {
        self.pool.shut_down(limit).await
    }

    /// The result, or `None` if it is too large: a truncated result would be replayed as if it were complete.
    fn fitting(&self, result: Option<Bytes>) -> Option<Bytes> {
        let limit = self.options.result_limit;
        let result = result?;
        if result.len() > limit {
            let bytes = result.len();
            tracing::warn!(bytes, limit_bytes = limit, "worker result exceeds the limit; result discarded");
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
