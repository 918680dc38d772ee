//! Runs the handlers of a round, side by side or grouped into shared transactions.

use std::sync::Arc;

use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt};
use tokio::time::Instant;
use tracing::Instrument;

use super::context::Context;
use super::runner::Runner;
use super::side_by_side::SideBySide;
use super::slots::{Slot, TakenSlots};
use super::spans;
use super::work::{ClaimedWork, Finished, Outcome, Start, Work};
use crate::active_claim::ActiveClaim;
use crate::store::{RenewRequest, Renewal};
use crate::telemetry::Counter;

/// Runs the handlers of a round side by side; each delivery comes out when its run has ended. Those that share a
/// transaction run one after the other, and come out when that has ended.
pub(super) fn handle<R: Runner>(
    context: &Context<R>,
    mut starts: Vec<Start>,
) -> impl Stream<Item = Finished> {
    let now = Instant::now();
    // A drain that began while the claims were under way starts none of them.
    let draining = context.draining.is_cancelled();
    let groups = if draining { Vec::new() } else { groups(&mut starts, context.config.transaction_batch) };
    let grouped = (!groups.is_empty()).then(|| handle_groups(context, groups));
    let mut taken = context.slots.as_ref().map(|slots| slots.take(runs(&starts)));
    let single = SideBySide::new(starts.into_iter().map(move |start| {
        let slot = taken.as_mut().filter(|_| is_run(&start)).and_then(TakenSlots::next);
        handle_in_slot(context, start, slot, draining, now)
    }));
    match grouped {
        None => single.left_stream(),
        Some(grouped) => stream::select(single, grouped).right_stream(),
    }
}

fn is_run(start: &Start) -> bool {
    matches!(start, Start::Run { .. })
}

fn runs(starts: &[Start]) -> usize {
    starts.iter().filter(|start| is_run(start)).count()
}

/// Runs the handler of one delivery once it has a slot, if it needs one; it does not start if it is to stop before.
async fn handle_in_slot<R: Runner>(
    context: &Context<R>,
    start: Start,
    slot: Option<Slot<'_>>,
    draining: bool,
    now: Instant,
) -> Finished {
    match &context.slots {
        Some(slots) if slot.is_none() && !draining && is_run(&start) => {
            let slot = tokio::select! {
                biased;
                slot = slots.wait() => slot,
                () = context.halt.stopped(start.work()) => None,
            };
            handle_one(context, start, slot.is_none(), Instant::now()).await
        }
        _ => {
            let finished = handle_one(context, start, draining, now).await;
            drop(slot);
            finished
        }
    }
}

/// Runs the handler of one delivery, if it is to run and no drain has begun.
pub(super) async fn handle_one<R: Runner>(
    context: &Context<R>,
    start: Start,
    draining: bool,
    now: Instant,
) -> Finished {
    match start {
        Start::Known { work, outcome } => Finished { work, claim: None, outcome },
        Start::Wait { work, claim } => unstarted(work, claim),
        Start::Run { work, claim, .. } if draining => unstarted(work, claim),
        Start::Run { work, claim, suspect } => {
            let outcome = run(context, &work, &claim, suspect, now).await;
            Finished { work, claim: Some(claim), outcome }
        }
    }
}

/// Takes out the runs that may share transactions, up to `size` runs each. A single run gains nothing.
fn groups(starts: &mut Vec<Start>, size: usize) -> Vec<Vec<ClaimedWork>> {
    if size < 2 || starts.len() < 2 {
        return Vec::new();
    }
    let mut groups: Vec<Vec<ClaimedWork>> = Vec::new();
    let mut others = Vec::with_capacity(starts.len());
    for start in starts.drain(..) {
        match start {
            Start::Run { work, claim, suspect: false } => match groups.last_mut() {
                Some(group) if group.len() < size => group.push((work, claim)),
                _ => groups.push(vec![(work, claim)]),
            },
            start => others.push(start),
        }
    }
    if let Some((work, claim)) = groups.pop_if(|group| group.len() == 1).and_then(|mut group| group.pop()) {
        others.push(Start::Run { work, claim, suspect: false });
    }
    *starts = others;
    groups
}

fn handle_groups<R: Runner>(
    context: &Context<R>,
    groups: Vec<Vec<ClaimedWork>>,
) -> impl Stream<Item = Finished> {
    let running = groups.into_iter().map(|group| async move {
        let outcomes = R::run_together(context, &group).await;
        group.into_iter().zip(outcomes)
    });
    running.collect::<FuturesUnordered<_>>().flat_map_unordered(None, move |ended| {
        ended
            .map(move |((work, claim), outcome)| async move {
                let outcome = match outcome {
                    Some(outcome) => outcome,
                    None if context.draining.is_cancelled() => Outcome::Unstarted,
                    None => {
                        claim.runs_again();
                        run(context, &work, &claim, false, Instant::now()).await
                    }
                };
                Finished { work, claim: Some(claim), outcome }
            })
            .collect::<FuturesUnordered<_>>()
    })
}

fn unstarted(mut work: Work, claim: Arc<ActiveClaim>) -> Finished {
    // It waits for its turn, which must not lengthen its pauses.
    work.holds = work.holds.saturating_sub(1);
    Finished { work, claim: Some(claim), outcome: Outcome::Unstarted }
}

async fn run<R: Runner>(
    context: &Context<R>,
    work: &Work,
    claim: &Arc<ActiveClaim>,
    suspect: bool,
    now: Instant,
) -> Outcome {
    // The handler was found unavailable, or the delivery is leaving, while the claims were under way.
    if context.halt.stops(work) {
        return Outcome::Unstarted;
    }
    let little_left = claim.is_past_deadline(now + context.config.lease / 2);
    let lease = claim.lease().filter(|_| suspect || little_left);
    // More than half of its lease is left, or it has none.
    let Some(lease) = lease else { return run_at(context, work, claim, now).await };
    let request = RenewRequest { lease, lease_for: context.config.lease, started: suspect };
    let sent = Instant::now();
    let batch = [request];
    let answers =
        context.store_call("mark a run as started", 1, context.store.renew(&context.scope, &batch)).await;
    match answers.into_iter().next() {
        Some(Ok(Renewal::Renewed)) => {
            claim.renewed(sent, sent + context.config.lease - context.config.lease_margin());
            run_in_time(context, work, claim, Instant::now()).await
        }
        Some(Ok(Renewal::Lost)) => Outcome::Fenced,
        _ => Outcome::Unstarted,
    }
}

/// A run that was asked to stop before it began does not begin.
async fn run_in_time<R: Runner>(
    context: &Context<R>,
    work: &Work,
    claim: &Arc<ActiveClaim>,
    now: Instant,
) -> Outcome {
    if claim.is_past_deadline(now) { Outcome::Unstarted } else { run_at(context, work, claim, now).await }
}

/// As [`run_in_time`], with a claim that holds at `now`.
async fn run_at<R: Runner>(
    context: &Context<R>,
    work: &Work,
    claim: &Arc<ActiveClaim>,
    now: Instant,
) -> Outcome {
    if claim.is_cancelled() || context.halt.stops(work) {
        return Outcome::Unstarted;
    }
    context.count(Counter::Unprotected, usize::from(claim.lease().is_none()));
    match spans::run(work, claim) {
        Some(span) => {
            let outcome = R::run(context, work, claim, now).instrument(span.clone()).await;
            if matches!(outcome, Outcome::Failed(_)) {
                spans::note_failure(&span);
            }
            outcome
        }
        None => R::run(context, work, claim, now).await,
    }
}
