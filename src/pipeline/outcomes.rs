//! Derives from a round what the dispatcher needs: whether the store answered, and whether the handler is available.

use std::sync::atomic::Ordering;

use super::breaker::{RunEnd, RunId};
use super::context::Context;
use super::event::{Asked, Ended};
use super::measure::CountedValues;
use super::work::{Finished, Outcome, Work};
use crate::error::{Error, ErrorKind};
use crate::handler::{HandlerError, Verdict as HandlerVerdict};
use crate::store::Claim;
use crate::telemetry::{Counter, Measure};

/// What a call for these claims shows about the store.
pub(super) fn asked(round: &[Work], answers: &[Result<Claim, Error>]) -> Asked {
    let mut asked = Asked { answered: 0, fresh_failures: 0, error: None };
    let claimed = round.iter().filter(|work| work.key().is_some());
    for (work, answer) in claimed.zip(answers) {
        match answer {
            Err(error) if concerns_the_store(error) => {
                asked.fresh_failures += usize::from(work.store_tries == 0);
                asked.error.get_or_insert_with(|| error.to_string());
            }
            _ => asked.answered += 1,
        }
    }
    asked
}

/// A damaged record concerns its key alone; any other error concerns all keys.
pub(super) fn concerns_the_store(error: &Error) -> bool {
    error.kind() != ErrorKind::Corrupt
}

/// Turns runs that found the handler unavailable into claims to be released, and returns the outcomes for the breaker.
pub(super) fn ended<R>(context: &Context<R>, finished: &mut [Finished]) -> Ended {
    measure_runs(context, finished);
    let mut ended = Ended { count: finished.len(), ..Ended::default() };
    // Those not yet added to the successes of the pipeline.
    let mut succeeded = 0;
    for Finished { work, outcome, .. } in finished {
        ended.suspects += usize::from(work.turn.is_some());
        match outcome {
            Outcome::Succeeded(_) | Outcome::Committed | Outcome::Unknown | Outcome::Failed(_) => {
                ended.runs += 1
            }
            _ => ended.idle += 1,
        }
        let id = || work.key().map_or(RunId::Delivery(work.receipt.tag()), RunId::Key);
        match outcome {
            Outcome::Succeeded(_) | Outcome::Committed => {
                succeeded += 1;
                ended.succeeded = Some(id());
            }
            Outcome::Failed(error) if error.verdict() == HandlerVerdict::Unavailable => {
                let reason = error.text().to_owned();
                ended.failed.push((id(), RunEnd::Unavailable(reason, error.delay()), work.probe));
                context.successes.fetch_add(std::mem::take(&mut succeeded), Ordering::Relaxed);
                if !is_charged(context, work, error) {
                    unavailable(context, work, error);
                    *outcome = Outcome::Unstarted;
                }
            }
            Outcome::Failed(error) => {
                ended.failed.push((id(), RunEnd::Failed(error.text().to_owned()), work.probe));
            }
            _ if work.probe.is_some() => ended.failed.push((id(), RunEnd::Nothing, work.probe)),
            _ => {}
        }
    }
    context.successes.fetch_add(succeeded, Ordering::Relaxed);
    ended
}

/// Notes how long the handler ran, and at which attempt it succeeded.
fn measure_runs<R>(context: &Context<R>, finished: &[Finished]) {
    if !context.measurer.is_on() {
        return;
    }
    let (mut succeeded, mut failed) = (Vec::with_capacity(finished.len()), Vec::new());
    let mut attempts = CountedValues::default();
    // Empty, and without memory, where deliveries have no spans.
    let mut traced = Vec::new();
    for Finished { claim, outcome, work } in finished {
        let Some(claim) = claim.as_deref() else { continue };
        let Some(seconds) = claim.take_run_seconds() else { continue };
        let failure = matches!(outcome, Outcome::Failed(_));
        if failure {
            failed.push(seconds);
        } else {
            succeeded.push(seconds);
            if matches!(outcome, Outcome::Succeeded(_) | Outcome::Committed) {
                attempts.add(f64::from(claim.attempt()));
            }
        }
        if let Some(span) = work.receipt.span() {
            let measure = if failure { Measure::HandlerFailed } else { Measure::HandlerSucceeded };
            traced.push((measure, seconds, span));
        }
    }
    context.measurer.observe(Measure::HandlerSucceeded, &succeeded);
    context.measurer.observe(Measure::HandlerFailed, &failed);
    context.measurer.observe_counted(Measure::Attempts, &attempts);
    if !traced.is_empty() {
        for measure in [Measure::HandlerSucceeded, Measure::HandlerFailed] {
            let runs = traced.iter().filter(|(of, ..)| *of == measure);
            context.measurer.slowest(measure, runs.map(|(_, seconds, span)| (*seconds, *span)));
        }
    }
}

/// Whether a run that found the handler unavailable uses an attempt nevertheless: its effect may have happened, and so
/// may that of each further run. The first of a message is free, and so is every run while nothing shows that the
/// handler is available for others: none has succeeded since, or the breaker is open and this was its probe. See
/// decision 0009.
fn is_charged<R>(context: &Context<R>, work: &mut Work, error: &HandlerError) -> bool {
    if !error.is_outcome_unknown() {
        return false;
    }
    let successes = context.successes.load(Ordering::Relaxed);
    let since = *work.in_doubt_since.get_or_insert(successes);
    work.probe.is_none() && successes > since
}

/// No attempt is used; the message waits, at least as long as the other side has asked for.
fn unavailable<R>(context: &Context<R>, work: &mut Work, error: &HandlerError) {
    context.count(Counter::Unavailable, 1);
    if error.is_outcome_unknown() {
        context.count(Counter::SuspectedDoubleEffects, 1);
    }
    work.not_before = error.delay().unwrap_or_default();
    let reason = error.text();
    tracing::debug!(key = ?work.key(), reason, "handler unavailable; no attempt used");
}

/// Why a delivery that finds its key dead in `generation` may be more than a copy of what died. To ack it could lose the only
/// copy there is: it may be the dead letter itself, moved back.
pub(super) fn not_what_died(work: &Work, generation: u32) -> Option<&'static str> {
    if work.unproven {
        return Some(
            "its headers say that it is a dead letter moved back, nothing proves it, and its key is dead: give `[key] secret` \
             so that letters are sealed, and move letters from before with `onceward dlq redrive`",
        );
    }
    // Its letter may have been decided on before, and not been confirmed: by then it has the generation of its key.
    (work.again || work.generation > generation).then_some(
        "its headers say that it is a dead letter of a later generation than that which died here: redrive this letter, \
         which has the generation of its key",
    )
}
