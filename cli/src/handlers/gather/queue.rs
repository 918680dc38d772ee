//! Runs that wait for a call, in their order: [`RunQueue`].

use std::collections::VecDeque;

use onceward::HandlerError;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::run::{GatheredRun, RunReply};

/// The messages of one call hold at most so many bytes together, unless it is a single one.
const CALL_BYTES: usize = 1 << 20;

/// Runs that wait. The caller that may make a call takes the first ones, its own among them or not.
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

    /// Has a run take part in a call, and waits for its reply. Each time that `turn` answers, up to `most` of the runs that wait
    /// are passed to `pass` with what it has answered, until this run is among them.
    ///
    /// # Cancel safety
    /// The run's token `dropped` decides: a run that still waits does not begin.
    pub(in crate::handlers) async fn ask<S, T>(
        &self,
        run: GatheredRun,
        reply: &mut ReplyReceiver,
        most: usize,
        turn: impl Fn() -> T,
        pass: impl Fn(S, Vec<GatheredRun>),
    ) -> RunReply
    where
        T: Future<Output = Result<S, HandlerError>>,
    {
        let cancellation = run.cancellation.clone();
        let number = self.push(run);
        let passing = async {
            if most > 1 {
                // Those that are ready together come in first.
                tokio::task::yield_now().await;
            }
            while self.holds(number) {
                let turn = match turn().await {
                    Ok(turn) => turn,
                    Err(error) => return error,
                };
                let runs = self.take(most);
                if runs.is_empty() {
                    drop(turn);
                } else {
                    pass(turn, runs);
                }
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

    /// True if a run still waits.
    fn holds(&self, number: u64) -> bool {
        self.waiting.lock().place(number).is_some()
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
        let place = waiting.place(number);
        place.and_then(|place| waiting.runs.remove(place)).is_some()
    }
}

impl WaitingRuns {
    fn place(&self, number: u64) -> Option<usize> {
        // Numbers ascend.
        self.runs.binary_search_by_key(&number, |(number, _)| *number).ok()
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use onceward::Message;
    use tokio::sync::Semaphore;
    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn ask(queue: &RunQueue, turns: &Semaphore, payload: &'static str, most: usize) -> Vec<String> {
        let calls = Mutex::new(Vec::new());
        let (run, mut reply) =
            GatheredRun::of(&Message::builder(payload).build(), 0, &CancellationToken::new());
        let turn = || async {
            turns.acquire().await.map(|turn| turn.forget()).map_err(|_| HandlerError::unavailable("closed"))
        };
        let pass = |(), runs: Vec<GatheredRun>| {
            let texts = runs.iter().filter_map(|run| run.message.as_ref());
            let texts: Vec<_> =
                texts.map(|one| String::from_utf8_lossy(one.payload()).into_owned()).collect();
            calls.lock().push(texts.concat());
            runs.into_iter().for_each(|run| run.end(Ok(None)));
        };
        assert!(matches!(queue.ask(run, &mut reply, most, turn, pass).await, RunReply::Ended(Ok(None))));
        calls.into_inner()
    }

    #[tokio::test]
    async fn a_caller_that_has_passed_the_run_of_another_waits_for_one_more_turn() {
        let (queue, turns) = (RunQueue::new("cancelled"), Semaphore::new(0));
        let first = ask(&queue, &turns, "a", 1);
        let mut first = std::pin::pin!(first);
        assert!(first.as_mut().now_or_never().is_none());
        // The first has no turn yet when another one, which came later, has.
        let other = Semaphore::new(2);
        let third = ask(&queue, &other, "c", 1).await;
        assert_eq!(third, ["a", "c"]);
        assert!(first.await.is_empty(), "it was passed by another");
    }

    #[tokio::test]
    async fn those_that_are_ready_together_are_passed_together() {
        let (queue, turns) = (RunQueue::new("cancelled"), Semaphore::new(3));
        let (a, b, c) = tokio::join!(
            ask(&queue, &turns, "a", 2),
            ask(&queue, &turns, "b", 2),
            ask(&queue, &turns, "c", 2)
        );
        let mut calls = [a, b, c].concat();
        calls.sort();
        assert_eq!(calls, ["ab", "c"]);
    }
}
