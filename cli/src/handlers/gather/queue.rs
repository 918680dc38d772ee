//! Runs that wait for a call, in their order: [`RunQueue`].

use std::collections::VecDeque;

use onceward::HandlerError;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::run::{GatheredRun, RunReply};

/// The messages of one call hold at most so many bytes together, unless it is a single one.
const CALL_BYTES: usize = 1 << 20;

/// Runs that wait. Whoever may make a call takes the first ones, its own among them or not.
pub(in crate::handlers) struct RunQueue {
    waiting: Mutex<WaitingRuns>,
    /// Why a run that is asked to stop meanwhile does not begin.
    not_begun: &'static str,
}

#[derive(Default)]
struct WaitingRuns {
    runs: VecDeque<(u64, GatheredRun)>,
    last: u64,
}

/// Where the reply to a run arrives.
pub(in crate::handlers) type ReplyReceiver = oneshot::Receiver<RunReply>;

impl RunQueue {
    /// An empty queue; `not_begun` says why a run that is asked to stop meanwhile does not begin.
    pub(in crate::handlers) fn new(not_begun: &'static str) -> Self {
        Self { waiting: Mutex::default(), not_begun }
    }

    /// The error of a run that was asked to stop before it began.
    pub(in crate::handlers) fn not_begun(&self) -> HandlerError {
        HandlerError::unavailable(self.not_begun)
    }

    /// Has a run take part in a call, and waits for its reply. Once `turn` answers, up to `most` of the runs that wait are passed
    /// to `pass` with what it has answered.
    ///
    /// # Cancel safety
    /// The run's token `dropped` decides: a run that still waits does not begin.
    pub(in crate::handlers) async fn ask<S>(
        &self,
        run: GatheredRun,
        reply: &mut ReplyReceiver,
        most: usize,
        turn: impl Future<Output = Result<S, HandlerError>>,
        pass: impl FnOnce(S, Vec<GatheredRun>),
    ) -> RunReply {
        let cancellation = run.cancellation.clone();
        let number = self.push(run);
        let passing = async {
            if most > 1 {
                // Those that are ready together come in first.
                tokio::task::yield_now().await;
            }
            let turn = match turn.await {
                Ok(turn) => turn,
                Err(error) => return error,
            };
            let runs = self.take(most);
            if runs.is_empty() {
                // Another call has taken this run as well.
                drop(turn);
            } else {
                pass(turn, runs);
            }
            std::future::pending().await
        };
        let error = tokio::select! {
            biased;
            reply = receive(reply) => return reply,
            () = cancellation.cancelled() => self.not_begun(),
            error = passing => error,
        };
        if self.remove(number) { RunReply::Ended(Err(error)) } else { receive(reply).await }
    }

    /// Adds a run; its number is for [`remove`](Self::remove).
    fn push(&self, run: GatheredRun) -> u64 {
        let mut waiting = self.waiting.lock();
        waiting.last += 1;
        let number = waiting.last;
        waiting.runs.push_back((number, run));
        number
    }

    /// The first runs, up to `most`. Those that should not begin any more end instead.
    fn take(&self, most: usize) -> Vec<GatheredRun> {
        let mut waiting = self.waiting.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < most
            && let Some((_, run)) = waiting.runs.front()
        {
            bytes += run.message.as_ref().map_or(0, onceward::Message::size);
            if bytes > CALL_BYTES && !taken.is_empty() {
                break;
            }
            let Some((_, run)) = waiting.runs.pop_front() else { break };
            if run.is_stopped() {
                run.end(Err(self.not_begun()));
            } else {
                taken.push(run);
            }
        }
        taken
    }

    /// Removes a run; false if it is taken.
    fn remove(&self, number: u64) -> bool {
        let mut waiting = self.waiting.lock();
        // Numbers ascend.
        match waiting.runs.binary_search_by_key(&number, |(number, _)| *number) {
            Ok(at) => waiting.runs.remove(at).is_some(),
            Err(_) => false,
        }
    }
}

impl std::fmt::Debug for RunQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunQueue").finish_non_exhaustive()
    }
}

/// The reply to a run that was passed on.
pub(in crate::handlers) async fn receive(reply: &mut ReplyReceiver) -> RunReply {
    reply.await.unwrap_or_else(|_| {
        let text = "the task that makes the calls has ended";
        RunReply::Ended(Err(HandlerError::retry(text).outcome_unknown()))
    })
}
