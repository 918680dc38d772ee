//! Runs the handlers of a round, side by side or grouped into shared transactions.

use futures_util::future::Either;
use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt};
use tokio::time::Instant;
use tracing::Instrument;

use super::context::Context;
use super::measure::RoundTime;
use super::runner::Runner;
use super::side_by_side::SideBySide;
use super::slots::{RunSlots, Slot};
use super::spans;
use super::work::{ClaimedWork, Finished, Outcome, Start, Work};
use crate::active_claim::{Horizon, SharedClaim};
use crate::store::{RenewRequest, Renewal};
use crate::telemetry::Counter;

/// Runs the handlers of a round side by side; each delivery comes out when its run has ended. Those that share a
/// transaction run one after the other, and come out when that has ended.
pub(super) fn handle<R: Runner>(
    context: &Context<R>,
    mut starts: Vec<Start>,
) -> impl Stream<Item = Finished> {
    let time = context.measurer.round_time(Instant::now());
    let mut horizon = Horizon::new(time.now + context.config.lease / 2);
    // A drain that began while the claims were under way starts none of them.
    let draining = context.draining.is_cancelled();
    let groups = if draining { Vec::new() } else { groups(&mut starts, context.config.transaction_batch) };
    let grouped = (!groups.is_empty()).then(|| handle_groups(context, groups));
    let mut taken = context.slots.as_ref().map(|slots| (slots, slots.take(runs(&starts))));
    // Of those that run now the last one reads the clock; those before it may share its reading.
    let mut to_share = match &taken {
        _ if !context.measurer.may_share() => 0,
        Some((_, taken)) => taken.len().saturating_sub(1),
        None => runs(&starts).saturating_sub(1),
    };
    let single = SideBySide::new(starts.into_iter().map(move |start| {
        let slot = match &mut taken {
            Some((slots, taken)) if is_run(&start) => {
                taken.next().map_or(RunSlot::Wait(slots), RunSlot::Taken)
            }
            _ => RunSlot::NotNeeded,
        };
        let mut time = time;
        if to_share > 0 && is_run(&start) {
            to_share -= 1;
            time = time.shared();
        }
        start_one(context, start, slot, draining, time, &mut horizon)
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

/// The slot of a run.
enum RunSlot<'c> {
    /// No more is claimed than has a slot, or its sequence has one.
    NotNeeded,
    Taken(Slot<'c>),
    /// None was free.
    Wait(&'c RunSlots),
}

/// Waits for a slot; `None` if the delivery must not start: it is to stop, a drain has begun, or the store is down, which is asked again
/// after a long wait.
pub(super) async fn wait_for_slot<'c, R: Runner>(
    context: &'c Context<R>,
    slots: &'c RunSlots,
    work: &Work,
    claim: Option<&SharedClaim>,
) -> Option<Slot<'c>> {
    let (slot, was_long) = tokio::select! {
        biased;
        slot = slots.wait() => slot?,
        () = context.halt.stopped(work) => return None,
    };
    if was_long && let Some(claim) = claim {
        renew_first(context, work, claim, FirstRenewal::Only).await.ok()?;
    }
    (!context.draining.is_cancelled() && !context.halt.stops_waiting(work)).then_some(slot)
}

/// Runs the handler of one delivery, if it is to run.
pub(super) async fn handle_one<R: Runner>(context: &Context<R>, start: Start, time: RoundTime) -> Finished {
    let mut horizon = Horizon::new(time.now + context.config.lease / 2);
    match start_one(context, start, RunSlot::NotNeeded, false, time, &mut horizon) {
        Either::Left(finished) => finished,
        Either::Right(run) => run.await,
    }
}

/// The run of one delivery, or how it has ended without one. `horizon`: a lease that ends before is renewed first.
#[inline]
fn start_one<'c, R: Runner>(
    context: &'c Context<R>,
    start: Start,
    slot: RunSlot<'c>,
    draining: bool,
    time: RoundTime,
    horizon: &mut Horizon,
) -> Either<Finished, impl Future<Output = Finished> + use<'c, R>> {
    let (work, claim, suspect) = match start {
        Start::Known { work, outcome } => return Either::Left(Finished { work, claim: None, outcome }),
        Start::Run { work, claim, suspect } if !draining => (work, claim, suspect),
        Start::Wait { work, claim } | Start::Run { work, claim, .. } => {
            return Either::Left(unstarted(work, claim));
        }
    };
    let renewal = FirstRenewal::of(suspect, &claim, horizon);
    Either::Right(async move {
        let (slot, renewal, time) = match slot {
            RunSlot::NotNeeded => (None, renewal, time),
            RunSlot::Taken(slot) => (Some(slot), renewal, time),
            // Few wait; the future of the others is not to be larger for it.
            RunSlot::Wait(slots) => {
                match Box::pin(wait_for_slot(context, slots, &work, Some(&claim))).await {
                    None => return unstarted(work, claim),
                    slot => {
                        let time = context.measurer.round_time(Instant::now());
                        let mut horizon = Horizon::new(time.now + context.config.lease / 2);
                        (slot, FirstRenewal::of(suspect, &claim, &mut horizon), time)
                    }
                }
            }
        };
        let outcome = run(context, &work, &claim, renewal, &time).await;
        drop(slot);
        Finished { work, claim: Some(claim), outcome }
    })
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
                        let time = context.measurer.round_time(Instant::now());
                        let mut horizon = Horizon::new(time.now + context.config.lease / 2);
                        let renewal = horizon.reaches_deadline(&claim).then_some(FirstRenewal::Only);
                        run(context, &work, &claim, renewal, &time).await
                    }
                };
                Finished { work, claim: Some(claim), outcome }
            })
            .collect::<FuturesUnordered<_>>()
    })
}

fn unstarted(mut work: Work, claim: SharedClaim) -> Finished {
    // It waits for its turn, which must not lengthen its pauses.
    work.holds = work.holds.saturating_sub(1);
    Finished { work, claim: Some(claim), outcome: Outcome::Unstarted }
}

/// The renewal of a claim before its run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FirstRenewal {
    /// Little of the lease is left.
    Only,
    /// The run of a suspect is marked as started.
    Started,
}

impl FirstRenewal {
    /// What a run needs that has its slot now.
    fn of(suspect: bool, claim: &SharedClaim, horizon: &mut Horizon) -> Option<Self> {
        match (suspect, horizon.reaches_deadline(claim)) {
            (true, _) => Some(Self::Started),
            (false, true) => Some(Self::Only),
            (false, false) => None,
        }
    }
}

async fn run<R: Runner>(
    context: &Context<R>,
    work: &Work,
    claim: &SharedClaim,
    renewal: Option<FirstRenewal>,
    time: &RoundTime,
) -> Outcome {
    // The handler was found unavailable, or the delivery is leaving, while the claims were under way.
    if context.halt.stops(work) {
        return Outcome::Unstarted;
    }
    let renewed;
    let time = match renewal {
        None => time,
        // In a place of its own, since few runs need it: each would be as large.
        Some(renewal) => match Box::pin(renew_first(context, work, claim, renewal)).await {
            Ok(now) => {
                renewed = context.measurer.round_time(now);
                &renewed
            }
            Err(outcome) => return outcome,
        },
    };
    if claim.is_cancelled() {
        return Outcome::Unstarted;
    }
    context.count(Counter::Unprotected, usize::from(claim.lease().is_none()));
    match spans::run(work, claim) {
        Some(span) => {
            let outcome = Box::pin(R::run(context, work, claim, time)).instrument(span.clone()).await;
            if matches!(outcome, Outcome::Failed(_)) {
                spans::note_failure(&span);
            }
            outcome
        }
        None => R::run(context, work, claim, time).await,
    }
}

/// Renews a claim before its run, and marks the run of a suspect as started. Answers the time, or how the delivery ends without a run:
/// one that was asked to stop before it began does not begin.
async fn renew_first<R: Runner>(
    context: &Context<R>,
    work: &Work,
    claim: &SharedClaim,
    renewal: FirstRenewal,
) -> Result<Instant, Outcome> {
    // Without a claim there is nothing to renew.
    let Some(lease) = claim.lease() else { return Ok(Instant::now()) };
    let started = renewal == FirstRenewal::Started;
    let request = RenewRequest { lease, lease_for: context.config.lease, started };
    let sent = Instant::now();
    let batch = [request];
    let answers =
        context.store_call("mark a run as started", 1, context.store.renew(&context.scope, &batch)).await;
    match answers.into_iter().next() {
        Some(Ok(Renewal::Renewed)) => {
            claim.renewed(sent, sent + context.config.lease - context.config.lease_margin());
        }
        Some(Ok(Renewal::Lost)) => return Err(Outcome::Fenced),
        _ => return Err(Outcome::Unstarted),
    }
    let now = Instant::now();
    let stops = claim.is_past_deadline(now) || context.halt.stops(work);
    if stops { Err(Outcome::Unstarted) } else { Ok(now) }
}
