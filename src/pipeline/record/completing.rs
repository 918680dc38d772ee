//! Writes completions: those of a round together, or one that is sent now and waited for later.

use std::slice;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use futures_util::future::Either;
use tracing::Span;

use super::decided::{ask_again, decided, log_fenced};
use crate::coalesce::Sent;
use crate::error::Error;
use crate::failpoints::{self, Step};
use crate::pipeline::context::Context;
use crate::pipeline::spans;
use crate::pipeline::work::{Finished, Outcome, Recorded, Verdict};
use crate::store::{CompleteRequest, Completion, Lease};
use crate::telemetry::{Counter, Counters};

/// Successes, and the completion that is to be written for each.
#[derive(Default)]
pub(super) struct Successes {
    pub(super) finished: Vec<Finished>,
    pub(super) requests: Vec<CompleteRequest>,
}

pub(super) fn completion<R>(
    context: &Context<R>,
    finished: &Finished,
    lease: Lease,
    result: Option<Bytes>,
) -> CompleteRequest {
    let config = &context.config;
    CompleteRequest {
        lease,
        result: result.filter(|result| config.keep_results && result.len() <= config.max_result_bytes),
        fingerprint: finished.work.fingerprint,
        generation: finished.claim.as_ref().map_or(0, |claim| claim.generation()),
        ttl: config.ttl,
        trace: context.measurer.trace_context(finished.work.receipt.span()),
    }
}

/// Effects that have happened and whose completion is under way. Dropped with their round, they may happen again.
struct Unrecorded<'s> {
    counters: &'s Counters,
    effects: usize,
}

impl Drop for Unrecorded<'_> {
    fn drop(&mut self) {
        self.counters.add(Counter::SuspectedDoubleEffects, self.effects as u64);
    }
}

pub(super) async fn complete<R>(context: &Context<R>, successes: Successes) -> Vec<Recorded> {
    let Successes { finished, requests } = successes;
    failpoints::hit(Step::CompleteSent);
    let unrecorded = Unrecorded { counters: &context.counters, effects: finished.len() };
    let spans = spans::completions(finished.iter().map(|finished| &*finished.work));
    let answers = context.complete(&requests).await;
    drop(spans);
    std::mem::forget(unrecorded);
    failpoints::hit(Step::CompleteApplied);
    let answered = finished.into_iter().zip(&requests).zip(answers);
    answered
        .map(|((finished, request), answer)| completed(context, finished, request.result.as_ref(), answer))
        .collect()
}

/// Its completion is durable, with this result.
fn handled<R>(context: &Context<R>, mut finished: Finished, result: Option<&Bytes>) -> Recorded {
    context.owe(&mut finished.work, result);
    decided(finished, Verdict::Ack(Counter::Handled))
}

/// As [`handled`], where the result that is kept may be another one.
fn handled_elsewhere<R>(context: &Context<R>, mut finished: Finished, result: Option<&Bytes>) -> Recorded {
    context.owe_own(&mut finished.work, result);
    decided(finished, Verdict::Ack(Counter::Handled))
}

/// What the answer to a completion means for its delivery.
fn completed<R>(
    context: &Context<R>,
    finished: Finished,
    result: Option<&Bytes>,
    answer: Result<Completion, Error>,
) -> Recorded {
    match answer {
        Ok(Completion::Completed) => handled(context, finished, result),
        Ok(Completion::Inserted) => {
            context.count(Counter::ClaimLost, 1);
            handled(context, finished, result)
        }
        // The handler may have completed its claim itself, by its token: that keeps no result.
        Ok(Completion::Repeated) => handled_elsewhere(context, finished, result),
        // The result that is kept is another run's. It is not asked for: the record may be gone by then.
        Ok(Completion::DoneByAnother) => {
            context.count(Counter::SuspectedDoubleEffects, 1);
            handled_elsewhere(context, finished, None)
        }
        Ok(Completion::HeldByAnother) => {
            log_fenced(context, &finished.work);
            context.count(Counter::SuspectedDoubleEffects, 1);
            ask_again(context, finished)
        }
        // The effect has happened and its record is uncertain: the message may run again.
        Err(_) if context.giving_up.is_cancelled() => {
            context.count(Counter::SuspectedDoubleEffects, 1);
            decided(finished, Verdict::Abandon)
        }
        Err(error) => {
            context.count(Counter::SuspectedDoubleEffects, 1);
            // An answer about the record itself: it cannot be read.
            let work = &finished.work;
            tracing::error!(
                scope = %context.scope, key = work.log_key(), origin = work.message.origin(),
                position = work.log_position(), message_id = work.log_id(), ?error,
                "completion unreadable; message held and may run again"
            );
            let after = context.config.retry.backoff.max;
            decided(finished, Verdict::Again { after })
        }
    }
}

/// A success whose completion is sent. Boxed, since it waits in futures that move.
pub(in crate::pipeline) struct Completing<'c> {
    finished: Finished,
    request: CompleteRequest,
    sent: Sent<Completion>,
    /// Of the delivery's completion; it ends with the answer.
    spans: Vec<Span>,
    unrecorded: Unrecorded<'c>,
}

/// Sends the completion of a run that has succeeded under a claim; anything else is returned as it is.
pub(in crate::pipeline) fn start_completing<R>(
    context: &Context<R>,
    mut finished: Finished,
) -> Either<Box<Completing<'_>>, Finished> {
    let lease = finished.claim.as_ref().and_then(|claim| claim.lease());
    let (Some(lease), Outcome::Succeeded(result)) = (lease, &mut finished.outcome) else {
        return Either::Right(finished);
    };
    let result = result.take();
    let request = completion(context, &finished, lease, result);
    failpoints::hit(Step::CompleteSent);
    let spans = spans::completions(std::iter::once(&*finished.work));
    let sent = context.completions.start_send(vec![request.clone()]);
    let unrecorded = Unrecorded { counters: &context.counters, effects: 1 };
    Either::Left(Box::new(Completing { finished, request, sent, spans, unrecorded }))
}

impl Completing<'_> {
    /// Waits until the completion is known to be written or refused. Sets `stop` if the first answer is not that it is durable.
    pub(in crate::pipeline) async fn known<R>(
        mut self: Box<Self>,
        context: &Context<R>,
        stop: &AtomicBool,
    ) -> Recorded {
        let mut answers = self.sent.answers().await;
        let durable = |answer: &Result<Completion, Error>| {
            answer.as_ref().is_ok_and(|answer| *answer != Completion::HeldByAnother)
        };
        if !answers.iter().all(durable) {
            stop.store(true, Relaxed);
            // In a place of its own: each completion would be as large.
            answers = Box::pin(context.complete_again(slice::from_ref(&self.request), answers)).await;
        }
        let Self { finished, request, spans, unrecorded, .. } = *self;
        drop(spans);
        std::mem::forget(unrecorded);
        failpoints::hit(Step::CompleteApplied);
        match answers.pop() {
            Some(answer) => completed(context, finished, request.result.as_ref(), answer),
            // There is an answer to each request.
            None => decided(finished, Verdict::Abandon),
        }
    }
}
