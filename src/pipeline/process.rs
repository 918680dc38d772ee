//! The order that is the product: claim → handle → complete → settle.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt};
use tokio::time::Instant;

use super::config::{Mode, OnInProgress, OnMismatch, OnStoreDown, Ordering};
use super::context::Context;
use super::dispatch::{Event, Report};
use super::limits::LONGEST;
use super::outcomes::{asked, concerns_the_store, ended, not_what_died};
use super::record::record_and_settle;
use super::runner::{self, Runner};
use super::work::{Finished, Outcome, Plan, Recorded, Start, Turn, Verdict, Work};
use crate::active_claim::ActiveClaim;
use crate::delivery::Settlement;
use crate::error::Error;
use crate::store::{Claim, ClaimRequest, Claimed, Reason, RenewRequest, Renewal};
use crate::telemetry::Counter;

/// Takes a round of deliveries from claim to settlement. The keys of a round are distinct.
///
/// Each step starts only after the one before it is durable: nothing is handled without a claim, nothing is settled
/// before its completion, failure or dead letter is written. Runs of a round go on side by side, and those that have
/// ended are recorded and settled while the others still run.
pub(crate) async fn process<R: Runner>(context: Arc<Context<R>>, round: Vec<Work>, asks: Asks) {
    let starts = claim(&context, round, asks).await;
    handle(&context, starts)
        .ready_chunks(context.config.max_batch)
        .for_each_concurrent(None, |mut finished| async {
            context.tell(Event::Finished(ended(&context, &mut finished)));
            record_and_settle(&context, finished).await;
        })
        .await;
}

/// Whom a round asks for its claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// The store.
    Store,
    /// The store, for keys that it did not answer before.
    Again,
    /// Not the store: it is down, and a policy allows runs without claims.
    Nobody,
}

/// Claims the keys of a round in one call, and decides what each answer means.
async fn claim<R: Runner>(context: &Context<R>, mut round: Vec<Work>, asks: Asks) -> Vec<Start> {
    let again = asks == Asks::Again;
    if asks == Asks::Nobody {
        context.tell(Event::Claimed { asked: None, again });
        let starts: Vec<Start> = round.into_iter().map(|work| unclaimed(context, work)).collect();
        context.heartbeat.watch(&starts);
        return starts;
    }
    let requests = requests(context, &mut round);
    let sent = Instant::now();
    let answers = if requests.is_empty() { Vec::new() } else { context.claim(&requests).await };
    let asked = (!requests.is_empty()).then(|| asked(&round, &answers));
    context.tell(Event::Claimed { asked, again });

    let deadline = sent + context.config.lease - context.config.lease_margin();
    let mut answers = answers.into_iter();
    let starts: Vec<Start> = round
        .into_iter()
        .map(|work| match work.plan {
            Plan::Claim(_) => match answers.next() {
                Some(answer) => answered(context, work, answer, sent, deadline),
                None => known(work, Outcome::Decided(Verdict::StoreDown)),
            },
            _ => unclaimed(context, work),
        })
        .collect();
    context.heartbeat.watch(&starts);
    starts
}

/// What becomes of a delivery without a claim.
fn unclaimed<R: Runner>(context: &Context<R>, work: Work) -> Start {
    match work.plan.clone() {
        Plan::Claim(_) | Plan::Unprotected => unprotected(context, work),
        Plan::Letter(reason, text) => known(work, Outcome::Letter(reason, text)),
        Plan::Reject => known(work, Outcome::Decided(Verdict::Reject)),
        // It is in no round before its key is known.
        Plan::Identify => known(work, Outcome::Decided(Verdict::Abandon)),
    }
}

fn requests<R>(context: &Context<R>, round: &mut [Work]) -> Vec<ClaimRequest> {
    context.draw(|token| {
        round
            .iter_mut()
            .filter_map(|work| {
                let key = work.key()?;
                let owner = *work.owner.get_or_insert_with(&mut *token);
                Some(ClaimRequest { key, owner, fingerprint: work.fingerprint, generation: work.generation })
            })
            .collect()
    })
}

fn answered<R: Runner>(
    context: &Context<R>,
    mut work: Work,
    answer: Result<Claim, Error>,
    sent: Instant,
    deadline: Instant,
) -> Start {
    let error = match answer {
        Ok(claim) => {
            work.store_tries = 0;
            // The claim is known now; the next one of this delivery is another claim. A key in progress may be held by an
            // earlier call of this very claim that is still under way: with the same token it recognises itself.
            if !matches!(claim, Claim::InProgress { .. }) {
                work.owner = None;
            }
            return granted(context, work, claim, sent, deadline);
        }
        Err(error) => error,
    };
    if concerns_the_store(&error) {
        // The same owner token again: a claim whose reply was lost recognises itself.
        tracing::debug!(%error, "a claim was not answered");
        // Observing suppresses nothing, so it does not wait for a store either.
        let unclaimed = context.config.policies.on_store_down == OnStoreDown::Process
            || context.config.mode == Mode::Observe;
        if unclaimed && !R::NEEDS_CLAIM {
            return unprotected(context, work);
        }
        return known(work, Outcome::Decided(Verdict::StoreDown));
    }
    work.owner = None;
    work.store_tries = 0;
    tracing::error!(%error, key = ?work.key(), "a key cannot be claimed; its message is held");
    known(work, Outcome::Decided(Verdict::Again { after: context.config.retry.backoff.max }))
}

fn granted<R: Runner>(
    context: &Context<R>,
    mut work: Work,
    claim: Claim,
    sent: Instant,
    deadline: Instant,
) -> Start {
    let observing = context.config.mode == Mode::Observe;
    let verdict = match claim {
        Claim::Claimed(claimed) => return start(context, work, &claimed, sent, deadline),
        Claim::Exhausted(exhausted) => {
            work.generation = exhausted.generation;
            return known(work, Outcome::Exhausted(exhausted));
        }
        Claim::Completed { .. } | Claim::Dead { .. } | Claim::InProgress { .. } | Claim::Mismatch
            if observing =>
        {
            context.count(Counter::ObservedDuplicates, 1);
            return unprotected(context, work);
        }
        Claim::Completed { .. } => Verdict::Ack(Counter::Duplicates),
        Claim::Dead { reason, generation, .. } => match not_what_died(&work, generation) {
            None => Verdict::Ack(Counter::DuplicatesOfDead),
            Some(text) => {
                (work.generation, work.again) = (generation, true);
                return known(work, Outcome::Letter(reason, text.to_owned()));
            }
        },
        Claim::InProgress { retry_in } => {
            context.count(Counter::InProgress, 1);
            in_progress(context, &mut work, retry_in)
        }
        Claim::Mismatch => {
            context.count(Counter::Mismatches, 1);
            match context.config.policies.on_mismatch {
                // It may be a dead letter whose payload was corrected.
                OnMismatch::Ack if !work.unproven => Verdict::Ack(Counter::MismatchAcked),
                // The key belongs to another message, so that this one has none.
                OnMismatch::Process => return unprotected(context, work),
                OnMismatch::DeadLetter | OnMismatch::Ack => {
                    let text =
                        "the key is known with another payload: two different messages share it".to_owned();
                    return known(work, Outcome::Letter(Reason::Mismatch, text));
                }
            }
        }
    };
    known(work, Outcome::Decided(verdict))
}

/// A key in progress elsewhere is never a reason to ack. The holder may finish long before its lease ends, so a held
/// delivery asks again after a growing pause; a parked one is not seen again before the lease is over.
fn in_progress<R>(context: &Context<R>, work: &mut Work, retry_in: Duration) -> Verdict {
    let can_park = context.capabilities.delayed_retry && context.config.ordering == Ordering::None;
    if context.config.policies.on_in_progress == OnInProgress::Park && can_park {
        return Verdict::GiveBack { after: retry_in };
    }
    work.held_until = Some(Instant::now() + retry_in.min(LONGEST));
    let longest = retry_in.max(Duration::from_millis(1));
    let after = context.pause(Duration::from_millis(50), work.holds, longest.min(Duration::from_secs(5)));
    work.holds += 1;
    Verdict::Again { after }
}

/// A key whose claims have lapsed before waits for its turn, without its claim: it may be one that kills the process.
fn start<R: Runner>(
    context: &Context<R>,
    mut work: Work,
    claimed: &Claimed,
    sent: Instant,
    deadline: Instant,
) -> Start {
    let deadline = deadline.min(sent + claimed.lease_left);
    work.generation = claimed.generation;
    let claim = Arc::new(ActiveClaim::new(claimed, work.receipt.tag(), sent, deadline));
    if claimed.lost > work.lost {
        context.note_takeover(claimed.lease.key, claimed.lost, R::NEEDS_CLAIM);
        work.lost = claimed.lost;
        // It may have killed one process more than when its turn came.
        if work.turn != Some(Turn::Alone) {
            return Start::Wait { work, claim };
        }
    }
    let marked = claimed.lost > 0 && work.turn == Some(Turn::Alone);
    if claimed.lost > 0 && work.turn.is_none() {
        return Start::Wait { work, claim };
    }
    Start::Run { work, claim, suspect: marked }
}

fn unprotected<R: Runner>(context: &Context<R>, work: Work) -> Start {
    if R::NEEDS_CLAIM {
        let text = "a transactional handler needs a key to claim".to_owned();
        return known(work, Outcome::Letter(Reason::MissingKey, text));
    }
    context.count(Counter::Unprotected, 1);
    let attempt = work.unprotected_failures + 1;
    let claim = Arc::new(ActiveClaim::unprotected(attempt, work.receipt.tag(), Instant::now()));
    Start::Run { work, claim, suspect: false }
}

fn known(work: Work, outcome: Outcome) -> Start {
    Start::Known { work, outcome }
}

/// Runs the handlers of a round side by side; each delivery comes out when its run has ended. Those that share a
/// transaction run one after the other, and come out when that has ended.
fn handle<R: Runner>(context: &Context<R>, mut starts: Vec<Start>) -> impl Stream<Item = Finished> {
    let now = Instant::now();
    // A drain that began while the claims were under way starts none of them.
    let draining = context.draining.is_cancelled();
    let groups = if draining { Vec::new() } else { groups(&mut starts, context.config.transaction_batch) };
    let grouped = (!groups.is_empty()).then(|| handle_groups(context, groups));
    let single = starts
        .into_iter()
        .map(|start| async move {
            match start {
                Start::Known { work, outcome } => Finished { work, claim: None, outcome },
                Start::Wait { work, claim } => unstarted(work, claim),
                Start::Run { work, claim, .. } if draining => unstarted(work, claim),
                Start::Run { work, claim, suspect } => {
                    let outcome = run(context, &work, &claim, suspect, now).await;
                    Finished { work, claim: Some(claim), outcome }
                }
            }
        })
        .collect::<FuturesUnordered<_>>();
    match grouped {
        None => single.left_stream(),
        Some(grouped) => stream::select(single, grouped).right_stream(),
    }
}

/// Takes out what is to share transactions, up to `size` runs each: what nothing speaks against. One alone gains nothing.
fn groups(starts: &mut Vec<Start>, size: usize) -> Vec<Vec<runner::Claimed>> {
    if size < 2 || starts.len() < 2 {
        return Vec::new();
    }
    let mut groups: Vec<Vec<runner::Claimed>> = Vec::new();
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
    groups: Vec<Vec<runner::Claimed>>,
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
    // It waits for its turn, which says nothing about how long it should.
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
    let Some(lease) = lease else { return run_in_time(context, work, claim, now).await };
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
    if claim.is_cancelled() || claim.is_past_deadline(now) || context.halt.stops(work) {
        return Outcome::Unstarted;
    }
    R::run(context, work, claim, now).await
}

/// Tells the broker how each delivery ends, and the dispatcher what follows for its key and lane.
pub(crate) fn settle<R>(context: &Context<R>, recorded: Vec<Recorded>) {
    if recorded.is_empty() {
        return;
    }
    let reports = recorded
        .into_iter()
        .map(|Recorded { work, verdict }| {
            let (key, fingerprint, generation) = (work.key(), work.fingerprint, work.generation);
            let (lane, size) = (work.lane, work.size);
            let (epoch, turn) = (work.receipt.tag().epoch, work.turn);
            let again = match verdict {
                Verdict::Ack(counter) => {
                    context.count(counter, 1);
                    work.receipt.settle(Settlement::Ack);
                    None
                }
                Verdict::Reject => {
                    context.count(Counter::Rejected, 1);
                    work.receipt.settle(Settlement::Reject);
                    None
                }
                Verdict::GiveBack { after } => {
                    context.count(Counter::GivenBack, 1);
                    // A handler may ask for any delay, and no clock can add the longest.
                    work.receipt.settle(Settlement::Retry { after: after.min(LONGEST) });
                    None
                }
                Verdict::Abandon => {
                    context.count(Counter::GivenBack, 1);
                    drop(work.receipt);
                    None
                }
                Verdict::Again { .. } | Verdict::Parked { .. } | Verdict::StoreDown => Some(work),
            };
            Report { key, fingerprint, generation, lane, epoch, size, turn, verdict, again }
        })
        .collect();
    context.tell(Event::Settled(reports));
}
