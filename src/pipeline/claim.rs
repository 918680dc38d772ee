//! Claims the keys of a round and decides, by each answer, whether its handler runs.

use std::time::Duration;

use tokio::time::Instant;

use super::config::{Mode, OnInProgress, OnMismatch, OnStoreDown, Ordering};
use super::context::Context;
use super::event::Event;
use super::kept_alive::Watch;
use super::limits::LONGEST;
use super::measure::CountedValues;
use super::outcomes::{asked, concerns_the_store, not_what_died};
use super::runner::Runner;
use super::spans;
use super::work::{Outcome, Plan, Start, Turn, Verdict, Work};
use crate::active_claim::{ActiveClaim, ClaimSharing, SharedClaim};
use crate::error::Error;
use crate::store::{Claim, ClaimRequest, Claimed, Reason};
use crate::telemetry::{Counter, KeySighting, KnownAs, Measure};

/// Where the claims of a round come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClaimTarget {
    /// The store.
    Store,
    /// The store, for keys whose earlier claims it did not answer.
    StoreAgain,
    /// Nowhere: the store is down, and a policy allows runs without claims.
    Bypass,
}

/// Claims the keys of a round in one call, and decides what each answer means. The claims are renewed until their runs end.
pub(super) async fn claim<R: Runner>(
    context: &Context<R>,
    mut round: Vec<Work>,
    target: ClaimTarget,
) -> (Vec<Start>, Watch<'_>) {
    let again = target == ClaimTarget::StoreAgain;
    if target == ClaimTarget::Bypass {
        context.send(Event::Claimed { asked: None, again });
        let starts: Vec<Start> = round.into_iter().map(|work| unclaimed::<R>(work)).collect();
        let watch = context.kept_alive.watch(&starts);
        return (starts, watch);
    }
    let requests = requests(context, &mut round);
    let sent = Instant::now();
    measure_waits(context, &mut round, sent);
    let spans = spans::claims(round.iter().filter(|work| work.key().is_some()).map(|work| &**work));
    // Not after a run whose end was not recorded, such as one that lost its claim with the store: a message whose handler crashes the
    // store must leave a claim behind, whose lapse is charged to it.
    let for_commit = R::NEEDS_CLAIM && round.iter().all(|work| work.holds == 0);
    let answers = if requests.is_empty() { Vec::new() } else { context.claim(&requests, for_commit).await };
    drop(spans);
    let asked = (!requests.is_empty()).then(|| asked(&round, &answers));
    context.send(Event::Claimed { asked, again });

    let mut claims = shared_claims(context, &round, &answers, sent).into_iter();
    let mut answers = answers.into_iter();
    let starts: Vec<Start> = round
        .into_iter()
        .map(|work| match work.plan {
            Plan::Claim(_) => match answers.next() {
                Some(answer) => answered(context, work, answer, &mut claims),
                None => known(work, Outcome::Decided(Verdict::StoreDown)),
            },
            _ => unclaimed::<R>(work),
        })
        .collect();
    let watch = context.kept_alive.watch(&starts);
    (starts, watch)
}

/// What is kept of the claims that the store has given to a round, in their order.
fn shared_claims<R>(
    context: &Context<R>,
    round: &[Work],
    answers: &[Result<Claim, Error>],
    sent: Instant,
) -> Vec<SharedClaim> {
    let longest = context.config.lease - context.config.lease_margin();
    let asked = round.iter().filter(|work| work.key().is_some());
    let mut claims = ClaimSharing::new(answers.len());
    for (work, answer) in asked.zip(answers) {
        if let Ok(Claim::Claimed(claimed)) = answer {
            let holds_for = longest.min(claimed.lease_left);
            claims.add(ActiveClaim::new(claimed, work.receipt.tag(), sent, holds_for));
        }
    }
    claims.all()
}

/// Notes how long deliveries have waited since their receipt, once for each.
fn measure_waits<R>(context: &Context<R>, round: &mut [Work], now: Instant) {
    if context.measurer.is_on() {
        let mut waits = CountedValues::default();
        // Most were received together.
        let mut last = (now, 0.0);
        let mut longest = (0.0, None);
        for work in round {
            let Some(at) = work.unclaimed_since.take() else { continue };
            if at != last.0 {
                last = (at, (now - at).as_secs_f64());
                if last.1 > longest.0 {
                    longest = (last.1, work.receipt.span());
                }
            }
            waits.add(last.1);
        }
        context.measurer.observe_counted(Measure::QueueWait, &waits);
        if let (longest, Some(span)) = longest {
            context.measurer.exemplar(Measure::QueueWait, longest, span);
        }
    }
}

/// The outcome of a delivery without a claim.
fn unclaimed<R: Runner>(work: Work) -> Start {
    match work.plan.clone() {
        Plan::Claim(_) | Plan::Unprotected => unprotected::<R>(work),
        Plan::Letter(reason, text) => known(work, Outcome::Letter(reason, text)),
        Plan::Reject => known(work, Outcome::Decided(Verdict::Reject)),
        Plan::Ack(counter) => known(work, Outcome::Decided(Verdict::Ack(counter))),
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
    claims: &mut impl Iterator<Item = SharedClaim>,
) -> Start {
    let error = match answer {
        Ok(claim) => {
            work.store_tries = 0;
            // The claim is known now; the next one of this delivery is another claim. A key in progress may be held by an
            // earlier call of this very claim that is still under way: with the same token it recognises itself.
            if !matches!(claim, Claim::InProgress { .. }) {
                work.owner = None;
            }
            if context.config.mode == Mode::Observe {
                observe(context, &mut work, &claim);
            }
            return granted(context, work, claim, claims);
        }
        Err(error) => error,
    };
    if concerns_the_store(&error) {
        // The same owner token again: a claim whose reply was lost recognises itself.
        tracing::debug!(%error, "claim failed; retrying with the same owner token");
        // Observing suppresses nothing, so it does not wait for a store either.
        let unclaimed = context.config.policies.on_store_down == OnStoreDown::Process
            || context.config.mode == Mode::Observe;
        if unclaimed && !R::NEEDS_CLAIM {
            return unprotected::<R>(work);
        }
        return known(work, Outcome::Decided(Verdict::StoreDown));
    }
    work.owner = None;
    work.store_tries = 0;
    tracing::error!(
        scope = %context.scope, key = work.log_key(), origin = work.message.origin(),
        position = work.log_position(), message_id = work.log_id(), %error, "claim refused; message held"
    );
    known(work, Outcome::Decided(Verdict::Again { after: context.config.retry.backoff.max }))
}

/// Counts in observe mode what would have been suppressed: once for each delivery, however often it is retried.
fn observe<R>(context: &Context<R>, work: &mut Work, claim: &Claim) {
    let Some(key) = work.key().filter(|_| !std::mem::replace(&mut work.sighted, true)) else { return };
    let known = match claim {
        Claim::Claimed(_) | Claim::Exhausted(_) => KnownAs::New,
        Claim::Completed { age, .. } => KnownAs::Completed(*age),
        Claim::InProgress { .. } => KnownAs::InProgress,
        Claim::Dead { .. } => KnownAs::Dead,
        Claim::Mismatch => KnownAs::Mismatch,
    };
    match known {
        KnownAs::New => {}
        KnownAs::Mismatch => context.count(Counter::Mismatches, 1),
        _ => context.count(Counter::ObservedDuplicates, 1),
    }
    if let Claim::Completed { age, trace, .. } = claim {
        context.measurer.duplicate(*age, work.receipt.span(), *trace);
    }
    context.measurer.sighted(&KeySighting::new(key, work.fingerprint, known));
}

fn granted<R: Runner>(
    context: &Context<R>,
    mut work: Work,
    claim: Claim,
    claims: &mut impl Iterator<Item = SharedClaim>,
) -> Start {
    let observing = context.config.mode == Mode::Observe;
    let verdict = match claim {
        Claim::Claimed(claimed) => {
            return match claims.next() {
                Some(claim) => start(context, work, &claimed, claim),
                // There is one for each answer of this kind.
                None => known(work, Outcome::Decided(Verdict::StoreDown)),
            };
        }
        Claim::Exhausted(exhausted) => {
            work.generation = exhausted.generation;
            return known(work, Outcome::Exhausted(Box::new(exhausted)));
        }
        Claim::Completed { .. } | Claim::Dead { .. } | Claim::InProgress { .. } | Claim::Mismatch
            if observing =>
        {
            return unprotected::<R>(work);
        }
        Claim::Completed { result, age, trace } => {
            context.owe(&mut work, result.as_ref());
            context.measurer.duplicate(age, work.receipt.span(), trace);
            Verdict::Ack(Counter::Duplicates)
        }
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
                OnMismatch::Process => return unprotected::<R>(work),
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
fn start<R: Runner>(context: &Context<R>, mut work: Work, claimed: &Claimed, claim: SharedClaim) -> Start {
    work.generation = claimed.generation;
    if claimed.lost > work.lost {
        context.note_takeover(&work, claimed.lease.key, claimed.lost, R::NEEDS_CLAIM);
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

fn unprotected<R: Runner>(work: Work) -> Start {
    if R::NEEDS_CLAIM {
        let text = "a transactional handler needs a key to claim".to_owned();
        return known(work, Outcome::Letter(Reason::MissingKey, text));
    }
    let attempt = work.unprotected_failures + 1;
    let claim = ActiveClaim::unprotected(attempt, work.receipt.tag(), Instant::now());
    let claim = SharedClaim::new(claim);
    Start::Run { work, claim, suspect: false }
}

fn known(work: Work, outcome: Outcome) -> Start {
    Start::Known { work, outcome }
}
