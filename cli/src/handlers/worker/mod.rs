//! Long-lived worker processes that speak JSON lines: [`WorkerHandler`].

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod lines;
mod open;
mod options;
mod pool;
mod process;
mod replies;
mod service;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use onceward::{Error, Handler, HandlerError, Message};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::gather::{Asked, GatheredRun, ReplyReceiver, RunQueue, RunReply, receive};
use options::NOT_BEGUN;
pub use options::WorkerOptions;
use pool::{WorkerPool, WorkerSeat};
use service::ProcessLife;

/// Passes messages to long-lived processes: one JSON line in, one JSON line out. Each process has a single request, or
/// [several](WorkerOptions::in_flight), which it answers in any order; with a [batch](WorkerOptions::batch) a line is an
/// array of requests, and its answer an array of answers, or a line for each.
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
/// The time limit of a message begins when its line is made, or a new process begins to read; the start of the process does not
/// count. A process that ends is restarted after a backoff.
///
/// Where a process ends with several messages that it has read, at most one is blamed: the only one whose time was over, or the
/// one whose answer was invalid. The others are returned without an attempt, their outcome unknown, and all of them run alone next: at a
/// process without other requests. If the time of one is over, or it is cancelled, the others have half of the
/// [grace](WorkerOptions::grace) to answer, before the process gets SIGTERM; it gets no more requests, and another process takes
/// its place.
///
/// Standard error is logged. Processes are started when the first messages need them, or by [`start`](Self::start), inherit no
/// open files, and must end when their standard input closes: a process that does not, survives if this program is killed.
///
/// Clones share the processes.
#[derive(Clone, Debug)]
pub struct WorkerHandler {
    pool: Arc<WorkerPool>,
    waiting: Arc<RunQueue>,
}

impl WorkerHandler {
    /// A handler with these options. It starts no process.
    pub fn new(options: WorkerOptions) -> Self {
        Self { pool: Arc::new(WorkerPool::new(options)), waiting: Arc::new(RunQueue::new(NOT_BEGUN)) }
    }

    /// Checks that the program exists, without starting it.
    ///
    /// # Errors
    /// The program is missing or not executable; the error names the fix.
    pub fn check(&self) -> Result<(), Error> {
        self.options().program.check()
    }

    /// Starts all processes in advance and, with `wait_until_ready`, waits until one is ready.
    ///
    /// # Errors
    /// No process can be started, or none becomes ready.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again.
    pub async fn start(&self) -> Result<(), HandlerError> {
        let wait = self.options().wait_until_ready;
        let mut starting: FuturesUnordered<_> =
            (0..self.pool.size()).map(|slot| started(&self.pool, slot, wait)).collect();
        let (mut ready, mut failed) = (false, None);
        while let Some(started) = starting.next().await {
            match started {
                Ok(()) if wait => return Ok(()),
                Ok(()) => ready = true,
                Err(error) => failed = Some(error),
            }
        }
        if ready { Ok(()) } else { failed.map_or(Ok(()), Err) }
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
        let limit = self.options().result_limit;
        let result = result?;
        if result.len() > limit {
            let bytes = result.len();
            tracing::warn!(bytes, limit_bytes = limit, "worker result exceeds the limit; result discarded");
            return None;
        }
        Some(result)
    }

    fn options(&self) -> &WorkerOptions {
        &self.pool.options
    }

    /// A seat at a process that runs. The wait counts towards the pipeline's limit, which includes it up to `until`.
    async fn seat(&self, alone: bool, until: Instant) -> Result<WorkerSeat, HandlerError> {
        let seat = async {
            let seat = self.pool.seat(alone).await?;
            seat.prepare().await?;
            Ok(seat)
        };
        timeout_at(until, seat).await.unwrap_or_else(|_| Err(self.no_seat()))
    }

    fn no_seat(&self) -> HandlerError {
        let limit = self.options().start_timeout;
        HandlerError::unavailable(format!(
            "no worker process could take it within the start timeout of {limit:?}"
        ))
    }

    /// Passes a run to a process that has no other.
    async fn ask_alone(&self, run: GatheredRun, reply: &mut ReplyReceiver, until: Instant) -> RunReply {
        let cancellation = run.cancellation.clone();
        let seat = tokio::select! {
            biased;
            () = cancellation.cancelled() => Err(self.waiting.not_begun()),
            seat = self.seat(true, until) => seat,
        };
        match seat {
            Ok(seat) => {
                seat.pass(vec![run]);
                receive(reply).await
            }
            Err(error) => RunReply::Ended(Err(error)),
        }
    }

    /// Passes a run to a process, on a line with others that wait if lines may be shared.
    async fn ask(&self, run: GatheredRun, reply: &mut ReplyReceiver, until: Instant) -> RunReply {
        let batch = self.options().batch.max(1) as usize;
        self.waiting.ask(run, reply, batch, || self.seat(false, until), WorkerSeat::pass).await
    }
}

/// Starts the process of a slot; `wait`s until it is ready.
async fn started(pool: &Arc<WorkerPool>, slot: usize, wait: bool) -> Result<(), HandlerError> {
    let mut life = pool.prepare(slot).await?;
    if !wait {
        return Ok(());
    }
    match life.wait_for(|life| !matches!(life, ProcessLife::Starting)).await.as_deref() {
        Ok(ProcessLife::Ended(text)) => Err(HandlerError::unavailable(text.clone())),
        Ok(_) => Ok(()),
        Err(_) => Err(HandlerError::unavailable("the worker process has ended")),
    }
}

impl Handler for WorkerHandler {
    type Output = Option<Bytes>;

    async fn handle(&self, message: Message) -> Asked {
        let (suspects, has_neighbours) = (&self.pool.suspects, self.options().has_neighbours());
        let mark = if has_neighbours { suspects.mark(&message) } else { 0 };
        let dropped = CancellationToken::new();
        let _ended_with_this_future = dropped.clone().drop_guard();
        let until = Instant::now() + self.options().start_timeout;
        loop {
            let (run, mut reply) = GatheredRun::of(&message, mark, &dropped);
            let reply = match has_neighbours && suspects.contains(mark) {
                true => self.ask_alone(run, &mut reply, until).await,
                false => self.ask(run, &mut reply, until).await,
            };
            match reply {
                RunReply::Ended(answer) => return answer.map(|result| self.fitting(result)),
                RunReply::Unsent if Instant::now() >= until => return Err(self.no_seat()),
                RunReply::Unsent => {}
            }
        }
    }
}
