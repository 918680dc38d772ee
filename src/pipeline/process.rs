//! The order that is the product: claim → handle → complete → settle.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::config::{Mode, OnInProgress, OnMismatch, OnStoreDown, Ordering};
use super::dispatch::{Event, Report};
use super::record::record_and_settle;
use super::runner::{self, Runner};
use super::shared::Shared;
use super::work::{Finished, Outcome, Plan, Recorded, Start, Verdict, Work};
use crate::delivery::Settlement;
use crate::error::{Error, ErrorKind};
use crate::handler::claim::ActiveClaim;
use crate::store::{Claim, ClaimRequest, Claimed, Reason, RenewRequest, Renewal};
use crate::telemetry::Counter;

/// Takes a round of deliveries from claim to settlement. The keys of a round are distinct.
///
/// Each step starts only after the one before it is durable: nothing is handled without a claim, nothing is settled
/// before its completion, failure or dead letter is written. Runs of a round go on side by side, and those that have
/// ended are recorded and settled while the others still run.
pub(crate) async fn process<R: Runner>(shared: Arc<Shared<R>>, round: Vec<Work>) {
    let starts = claim(&shared, round).await;
    handle(&shared, starts)
        .ready_chunks(shared.config.max_batch)
        .for_each_concurrent(None, |finished| async {
            shared.tell(Event::Finished(finished.len()));
            record_and_settle(&shared, finished).await;
        })
        .await;
}

/// Claims the keys of a round in one call, and decides what each answer means.
async fn claim<R: Runner>(shared: &Shared<R>, mut round: Vec<Work>) -> Vec<Start> {
    let requests = requests(shared, &mut round);
    let sent = Instant::now();
    let answers = if requests.is_empty() { Vec::new() } else { shared.claim(&requests).await };
    let trouble =
        answers.iter().filter_map(|answer| answer.as_ref().err()).find(|error| concerns_the_store(error));
    let store = (!requests.is_empty()).then(|| trouble.map_or(Ok(()), |error| Err(error.to_string())));
    shared.tell(Event::Claimed { store });

    let deadline = sent + shared.config.lease - shared.config.lease_margin();
    let mut answers = answers.into_iter();
    let starts: Vec<Start> = round
        .into_iter()
        .map(|work| match work.plan.clone() {
            Plan::Claim(_) => match answers.next() {
                Some(answer) => answered(shared, work, answer, sent, deadline),
                None => known(work, Outcome::Decided(Verdict::StoreDown)),
            },
            Plan::Unprotected => unprotected(shared, work),
            Plan::Letter(reason, text) => known(work, Outcome::Letter(reason, text)),
            Plan::Reject => known(work, Outcome::Decided(Verdict::Reject)),
        })
        .collect();
    shared.heartbeat.watch(&starts);
    starts
}

fn requests<R>(shared: &Shared<R>, round: &mut [Work]) -> Vec<ClaimRequest> {
    shared.draw(|token| {
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
    shared: &Shared<R>,
    mut work: Work,
    answer: Result<Claim, Error>,
    sent: Instant,
    deadline: Instant,
) -> Start {
    let error = match answer {
        Ok(claim) => {
            // The claim is known now; the next one of this delivery is another claim.
            work.owner = None;
            return granted(shared, work, claim, sent, deadline);
        }
        Err(error) => error,
    };
    if concerns_the_store(&error) {
        // The same owner token again: a claim whose reply was lost recognises itself.
        tracing::debug!(%error, "a claim was not answered");
        // Observing suppresses nothing, so it does not wait for a store either.
        let unclaimed = shared.config.policies.on_store_down == OnStoreDown::Process
            || shared.config.mode == Mode::Observe;
        if unclaimed && !R::NEEDS_CLAIM {
            return unprotected(shared, work);
        }
        return known(work, Outcome::Decided(Verdict::StoreDown));
    }
    work.owner = None;
    tracing::error!(%error, key = ?work.key(), "a key cannot be claimed; its message is held");
    known(work, Outcome::Decided(Verdict::Again { after: shared.config.retry.backoff.max }))
}

/// A damaged record concerns its key alone; whatever else goes wrong concerns all keys.
fn concerns_the_store(error: &Error) -> bool {
    error.kind() != ErrorKind::Corrupt
}

fn granted<R: Runner>(
    shared: &Shared<R>,
    mut work: Work,
    claim: Claim,
    sent: Instant,
    deadline: Instant,
) -> Start {
    let observing = shared.config.mode == Mode::Observe;
    let verdict = match claim {
        Claim::Claimed(claimed) => return start(work, &claimed, sent, deadline),
        Claim::Exhausted(exhausted) => return known(work, Outcome::Exhausted(exhausted)),
        Claim::Completed { .. } | Claim::Dead { .. } | Claim::InProgress { .. } | Claim::Mismatch
            if observing =>
        {
            shared.count(Counter::ObservedDuplicates, 1);
            return unprotected(shared, work);
        }
        Claim::Completed { .. } => Verdict::Ack(Counter::Duplicates),
        Claim::Dead { .. } => Verdict::Ack(Counter::DuplicatesOfDead),
        Claim::InProgress { retry_in } => {
            shared.count(Counter::InProgress, 1);
            in_progress(shared, &mut work, retry_in)
        }
        Claim::Mismatch => {
            shared.count(Counter::Mismatches, 1);
            match shared.config.policies.on_mismatch {
                OnMismatch::Ack => Verdict::Ack(Counter::MismatchAcked),
                // `process` compares nothing, so that no store answers with a mismatch.
                OnMismatch::DeadLetter | OnMismatch::Process => {
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
fn in_progress<R>(shared: &Shared<R>, work: &mut Work, retry_in: Duration) -> Verdict {
    let can_park = shared.capabilities.delayed_retry && shared.config.ordering == Ordering::None;
    if shared.config.policies.on_in_progress == OnInProgress::Park && can_park {
        return Verdict::GiveBack { after: retry_in };
    }
    let longest = retry_in.max(Duration::from_millis(1));
    let after = shared.pause(Duration::from_millis(50), work.holds, longest.min(Duration::from_secs(5)));
    work.holds += 1;
    Verdict::Again { after }
}

fn start(work: Work, claimed: &Claimed, sent: Instant, deadline: Instant) -> Start {
    let deadline = deadline.min(sent + claimed.lease_left);
    let claim = Arc::new(ActiveClaim::new(claimed, work.receipt.tag(), sent, deadline));
    Start::Run { work, claim, suspect: claimed.lost > 0 }
}

fn unprotected<R: Runner>(shared: &Shared<R>, work: Work) -> Start {
    if R::NEEDS_CLAIM {
        let text = "a transactional handler needs a key to claim".to_owned();
        return known(work, Outcome::Letter(Reason::MissingKey, text));
    }
    shared.count(Counter::Unprotected, 1);
    let attempt = work.unprotected_failures + 1;
    let claim = Arc::new(ActiveClaim::unprotected(attempt, work.receipt.tag(), Instant::now()));
    Start::Run { work, claim, suspect: false }
}

fn known(work: Work, outcome: Outcome) -> Start {
    Start::Known { work, outcome }
}

/// Runs the handlers of a round side by side; each delivery comes out when its run has ended. Those that share a
/// transaction run one after the other, and come out when that has ended.
fn handle<R: Runner>(shared: &Shared<R>, mut starts: Vec<Start>) -> impl Stream<Item = Finished> {
    let now = Instant::now();
    // A drain that began while the claims were under way starts none of them.
    let draining = shared.draining.is_cancelled();
    let groups = if draining { Vec::new() } else { groups(&mut starts, shared.config.transaction_batch) };
    let grouped = (!groups.is_empty()).then(|| handle_groups(shared, groups));
    let single = starts
        .into_iter()
        .map(|start| async move {
            match start {
                Start::Known { work, outcome } => Finished { work, claim: None, outcome, _alone: None },
                Start::Run { work, claim, .. } if draining => unstarted(work, claim),
                Start::Run { work, claim, suspect: false } => {
                    let outcome = run(shared, &work, &claim, false, now).await;
                    Finished { work, claim: Some(claim), outcome, _alone: None }
                }
                Start::Run { work, claim, suspect: true } => {
                    // A key whose claim has lapsed before may be one that kills the process: such keys run one at a
                    // time, each after a write that says so, and a lapse from then on counts as an attempt.
                    let Some(alone) = alone(shared).await else { return unstarted(work, claim) };
                    let outcome = run(shared, &work, &claim, true, now).await;
                    Finished { work, claim: Some(claim), outcome, _alone: Some(alone) }
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
    shared: &Shared<R>,
    groups: Vec<Vec<runner::Claimed>>,
) -> impl Stream<Item = Finished> {
    let running = groups.into_iter().map(|group| async move {
        let outcomes = R::run_together(shared, &group).await;
        group.into_iter().zip(outcomes)
    });
    running.collect::<FuturesUnordered<_>>().flat_map_unordered(None, move |ended| {
        ended
            .map(move |((work, claim), outcome)| async move {
                let outcome = match outcome {
                    Some(outcome) => outcome,
                    None if shared.draining.is_cancelled() => Outcome::Unstarted,
                    None => {
                        claim.runs_again();
                        run(shared, &work, &claim, false, Instant::now()).await
                    }
                };
                Finished { work, claim: Some(claim), outcome, _alone: None }
            })
            .collect::<FuturesUnordered<_>>()
    })
}

fn unstarted(work: Work, claim: Arc<ActiveClaim>) -> Finished {
    Finished { work, claim: Some(claim), outcome: Outcome::Unstarted, _alone: None }
}

/// Waits until no other suspect runs or waits for its record; `None`: a drain has begun.
async fn alone<R>(shared: &Shared<R>) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        biased;
        () = shared.draining.cancelled() => None,
        permit = Arc::clone(&shared.suspects).acquire_owned() => permit.ok(),
    }
}

async fn run<R: Runner>(
    shared: &Shared<R>,
    work: &Work,
    claim: &Arc<ActiveClaim>,
    suspect: bool,
    now: Instant,
) -> Outcome {
    let little_left = claim.is_past_deadline(now + shared.config.lease / 2);
    if !suspect && !little_left {
        return R::run(shared, work, claim, now).await;
    }
    let Some(lease) = claim.lease() else { return R::run(shared, work, claim, Instant::now()).await };
    let request = RenewRequest { lease, lease_for: shared.config.lease, started: suspect };
    let sent = Instant::now();
    let batch = [request];
    let answers =
        shared.store_call("mark a run as started", 1, shared.store.renew(&shared.scope, &batch)).await;
    match answers.into_iter().next() {
        Some(Ok(Renewal::Renewed)) => {
            claim.renewed(sent, sent + shared.config.lease - shared.config.lease_margin());
            R::run(shared, work, claim, Instant::now()).await
        }
        Some(Ok(Renewal::Lost)) => Outcome::Fenced,
        _ => Outcome::Unstarted,
    }
}

/// Tells the broker how each delivery ends, and the dispatcher what follows for its key and lane.
pub(crate) fn settle<R>(shared: &Shared<R>, recorded: Vec<Recorded>) {
    if recorded.is_empty() {
        return;
    }
    let reports = recorded
        .into_iter()
        .map(|Recorded { work, verdict }| {
            let (key, fingerprint, generation) = (work.key(), work.fingerprint, work.generation);
            let (lane, size) = (work.lane, work.size);
            let again = match verdict {
                Verdict::Ack(counter) => {
                    shared.count(counter, 1);
                    work.receipt.settle(Settlement::Ack);
                    None
                }
                Verdict::Reject => {
                    shared.count(Counter::Rejected, 1);
                    work.receipt.settle(Settlement::Reject);
                    None
                }
                Verdict::GiveBack { after } => {
                    shared.count(Counter::GivenBack, 1);
                    work.receipt.settle(Settlement::Retry { after });
                    None
                }
                Verdict::Abandon => {
                    shared.count(Counter::GivenBack, 1);
                    drop(work.receipt);
                    None
                }
                Verdict::Again { .. } | Verdict::Parked { .. } | Verdict::StoreDown => Some(work),
            };
            Report { key, fingerprint, generation, lane, size, verdict, again }
        })
        .collect();
    shared.tell(Event::Settled(reports));
}
