//! Writes how runs ended, before anything is settled: completions, failures and releases; dead letters are in
//! `dead_letters.rs`.

mod completing;
mod decided;
mod releasing;

use std::future::ready;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};

pub(super) use self::completing::{Completing, start_completing};
use self::completing::{Successes, complete, completion};
use self::decided::{ask_again, decided, log_fenced};
use self::releasing::release;
pub(super) use self::releasing::release_behind;
use super::config::{OnExhausted, Ordering};
use super::context::Context;
use super::dead_letters::{Letter, dead_letter, park, report_without_claim};
use super::limits::LONGEST;
use super::runner::Runner;
use super::work::{Finished, Outcome, Recorded, Verdict, Work};
use crate::dead_letter::FailureReport;
use crate::failpoints::{self, Step};
use crate::handler::{HandlerError, Verdict as HandlerVerdict};
use crate::store::{FailRequest, Failure, Reason};
use crate::telemetry::Counter;

/// A failure that is to be written under its claim.
struct FailedRun {
    finished: Finished,
    request: FailRequest,
    error: HandlerError,
}

#[derive(Default)]
struct Sorted {
    succeeded: Successes,
    failed: Vec<FailedRun>,
    letters: Vec<Letter>,
    unstarted: Vec<Finished>,
    decided: Vec<Recorded>,
}

/// Writes how each of `finished` ended. The deliveries of each write come out as soon as it is durable: a slow
/// dead-letter queue does not hold up completions.
pub(crate) fn record<R: Runner>(
    context: &Context<R>,
    finished: Vec<Finished>,
) -> impl Stream<Item = Vec<Recorded>> {
    let Sorted { succeeded, failed, letters, unstarted, decided } = sort(context, finished);
    let completed = write_if(!succeeded.finished.is_empty(), || complete(context, succeeded));
    let failed = stream::once(async move {
        match failed.is_empty() {
            true => (Vec::new(), letters),
            false => {
                let (recorded, exhausted) = fail(context, failed).await;
                (recorded, letters.into_iter().chain(exhausted).collect())
            }
        }
    })
    .flat_map(|(recorded, letters)| {
        let dead_lettered = write_if(!letters.is_empty(), || dead_letter(context, letters));
        stream::once(ready(recorded)).chain(dead_lettered)
    });
    let released = write_if(!unstarted.is_empty(), || release(context, unstarted));
    stream::once(ready(decided)).chain(stream::select(completed, stream::select(failed, released)))
}

fn write_if<F: Future<Output = Vec<Recorded>>>(
    any: bool,
    write: impl FnOnce() -> F,
) -> impl Stream<Item = Vec<Recorded>> {
    stream::iter(any.then(write)).then(|written| written)
}

fn sort<R>(context: &Context<R>, finished: Vec<Finished>) -> Sorted {
    let mut sorted = Sorted::default();
    let most = finished.len();
    for mut finished in finished {
        let lease = finished.claim.as_ref().and_then(|claim| claim.lease());
        match std::mem::replace(&mut finished.outcome, Outcome::Fenced) {
            Outcome::Succeeded(result) => match lease {
                Some(lease) => {
                    let request = completion(context, &finished, lease, result);
                    push(&mut sorted.succeeded.finished, finished, most);
                    push(&mut sorted.succeeded.requests, request, most);
                }
                None => {
                    finished.work.is_unrecorded = true;
                    context.owe_unrecorded(&mut finished.work, result);
                    sorted.decided.push(decided(finished, Verdict::Ack(Counter::Handled)));
                }
            },
            Outcome::Committed => {
                context.owe(&mut finished.work, None);
                sorted.decided.push(decided(finished, Verdict::Ack(Counter::Handled)));
            }
            Outcome::Decided(verdict) => push(&mut sorted.decided, decided(finished, verdict), most),
            Outcome::Fenced => {
                log_fenced(context, &finished.work);
                sorted.decided.push(ask_again(context, finished));
            }
            Outcome::Unknown => {
                // The same owner token again: if the commit has not happened, the claim recognises itself and needs no lapse.
                // If it is still under way, only one of the two can find the claim pending.
                finished.work.owner = lease.map(|lease| lease.owner);
                sorted.decided.push(ask_again(context, finished));
            }
            Outcome::Unstarted => sorted.unstarted.push(finished),
            Outcome::Failed(error) => {
                context.count(Counter::RunsFailed, 1);
                match lease {
                    Some(lease) => {
                        let attempt = finished.claim.as_ref().map_or(1, |claim| claim.attempt());
                        let terminal = terminal(context, attempt, &error)
                            .filter(|_| context.config.policies.on_exhausted == OnExhausted::DeadLetter);
                        let request = FailRequest { lease, error: error.text().to_owned(), terminal };
                        sorted.failed.push(FailedRun { finished, request, error });
                    }
                    None => unprotected_failure(context, finished, &error, &mut sorted),
                }
            }
            Outcome::Exhausted(exhausted) => {
                let why = FailureReport {
                    reason: exhausted.reason,
                    error: exhausted.error.unwrap_or_default(),
                    attempts: exhausted.attempts,
                    lost: exhausted.lost,
                    generation: exhausted.generation,
                    first_age: exhausted.first_age,
                    again: false,
                };
                sorted.letters.push(Letter { work: finished.work, lease: Some(exhausted.lease), why });
            }
            Outcome::Letter(reason, error) => {
                let why = report_without_claim(reason, error, &finished.work);
                sorted.letters.push(Letter { work: finished.work, lease: None, why });
            }
        }
    }
    sorted
}

/// Adds to items of which there will be at most so many, and mostly about as many if there is one.
fn push<T>(items: &mut Vec<T>, item: T, most: usize) {
    if items.is_empty() {
        items.reserve_exact(most);
    }
    items.push(item);
}

/// Whether a run that failed was the last one.
fn terminal<R>(context: &Context<R>, attempt: u32, error: &HandlerError) -> Option<Reason> {
    match error.verdict() {
        HandlerVerdict::Permanent => Some(Reason::Permanent),
        _ if attempt >= context.config.retry.max_attempts => Some(Reason::AttemptsExhausted),
        _ => None,
    }
}

async fn fail<R: Runner>(context: &Context<R>, failed: Vec<FailedRun>) -> (Vec<Recorded>, Vec<Letter>) {
    failpoints::hit(Step::FailSent);
    let requests: Vec<_> = failed.iter().map(|run| run.request.clone()).collect();
    let answers = context
        .until_known(&requests, |batch| {
            Box::pin(async move {
                let call = context.store.fail(&context.scope, &batch);
                context.store_call("write failed runs", batch.len(), call).await
            })
        })
        .await;
    failpoints::hit(Step::FailApplied);
    let mut recorded = Vec::new();
    let mut letters = Vec::new();
    for (FailedRun { finished, request, error }, answer) in failed.into_iter().zip(answers) {
        match answer {
            Ok(Failure::Recorded { attempts, first_age }) => match request.terminal {
                Some(reason) => {
                    let claim = finished.claim.as_ref();
                    let why = FailureReport {
                        reason,
                        error: request.error,
                        attempts,
                        lost: 0,
                        generation: claim.map_or(0, |claim| claim.generation()),
                        first_age,
                        again: false,
                    };
                    if let Some(claim) = claim {
                        claim.end();
                    }
                    letters.push(Letter { work: finished.work, lease: Some(request.lease), why });
                }
                None => recorded.push(retry(context, finished, attempts, &error)),
            },
            Ok(Failure::Lost) => {
                log_fenced(context, &finished.work);
                recorded.push(ask_again(context, finished));
            }
            Err(_) if context.giving_up.is_cancelled() => recorded.push(decided(finished, Verdict::Abandon)),
            Err(refused) => {
                let work = &finished.work;
                tracing::error!(
                    scope = %context.scope, key = work.log_key(), origin = work.message.origin(),
                    position = work.log_position(), message_id = work.log_id(), error = ?refused,
                    "failure record unreadable; message held"
                );
                let after = context.config.retry.backoff.max;
                recorded.push(decided(finished, Verdict::Again { after }));
            }
        }
    }
    (recorded, letters)
}

/// The next try of a run that failed, in this process or, where the broker can wait and no order is kept, through it.
fn retry<R>(context: &Context<R>, mut finished: Finished, attempts: u32, error: &HandlerError) -> Recorded {
    context.count(Counter::Retried, 1);
    if error.is_outcome_unknown() {
        context.count(Counter::SuspectedDoubleEffects, 1);
    }
    let work = &mut finished.work;
    let exhausted = terminal(context, attempts, error).is_some();
    let backoff = if exhausted {
        park(context, work, error.text());
        context.config.retry.backoff.max
    } else {
        context.backoff(attempts, work.last_delay)
    };
    let after = backoff.max(error.delay().unwrap_or_default()).min(LONGEST);
    work.last_delay = after;
    log_failed(context, work, attempts, after, error);
    let verdict = if context.capabilities.delayed_retry
        && context.config.ordering == Ordering::None
        && after >= GIVE_BACK_FROM
    {
        Verdict::GiveBack { after }
    } else {
        Verdict::Again { after }
    };
    decided(finished, verdict)
}

/// The first run that fails with a text is visible, and then one in 30 s.
fn log_failed<R>(context: &Context<R>, work: &Work, attempts: u32, after: Duration, error: &HandlerError) {
    let (scope, key, origin) = (&context.scope, work.log_key(), work.message.origin());
    match context.log.failed.allow(error.text()) {
        Some(left_out) => tracing::info!(
            %scope, key, origin, position = work.log_position(), message_id = work.log_id(), attempts,
            retry_in = ?after, error = error.text(), left_out, "run failed; retry scheduled"
        ),
        None => tracing::debug!(
            %scope, key, origin, position = work.log_position(), message_id = work.log_id(), attempts,
            retry_in = ?after, error = error.text(), "run failed; retry scheduled"
        ),
    }
}

/// Shorter delays are spent holding the delivery: a round trip through the broker would cost more.
const GIVE_BACK_FROM: Duration = Duration::from_secs(1);

fn unprotected_failure<R>(
    context: &Context<R>,
    mut finished: Finished,
    error: &HandlerError,
    sorted: &mut Sorted,
) {
    finished.work.unprotected_failures += 1;
    let failures = finished.work.unprotected_failures;
    match terminal(context, failures, error) {
        Some(reason) if context.config.policies.on_exhausted == OnExhausted::DeadLetter => {
            let why = report_without_claim(reason, error.text().to_owned(), &finished.work);
            // The heartbeat watches runs without a claim as well, for their delivery.
            finished.claim.iter().for_each(|claim| claim.end());
            sorted.letters.push(Letter { work: finished.work, lease: None, why });
        }
        _ => {
            let recorded = retry(context, finished, failures, error);
            sorted.decided.push(recorded);
        }
    }
}
