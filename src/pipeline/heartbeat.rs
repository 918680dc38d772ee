//! One heartbeat for two leases: keeps claims alive in the store and deliveries alive in the broker, and tells a handler
//! to stop when either is lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::context::Context;
use super::work::Start;
use crate::active_claim::ActiveClaim;
use crate::consumer::{Acker, Settled};
use crate::delivery::Tag;
use crate::failpoints::{self, Step};
use crate::store::{RenewRequest, Renewal};
use crate::telemetry::Counter;

/// What is kept alive. Rounds enter whole, so that a message costs a push; those that end within a third of their lease
/// are never looked at singly.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat {
    rounds: Mutex<Vec<Vec<Arc<ActiveClaim>>>>,
    held: Mutex<BTreeMap<Tag, Instant>>,
}

impl Heartbeat {
    /// Keeps the claims of a round alive until their runs end.
    pub(crate) fn watch(&self, starts: &[Start]) {
        let claims: Vec<_> = starts
            .iter()
            .filter_map(|start| match start {
                Start::Run { claim, .. } | Start::Wait { claim, .. } => Some(Arc::clone(claim)),
                Start::Known { .. } => None,
            })
            .collect();
        if !claims.is_empty() {
            lock(&self.rounds).push(claims);
        }
    }

    /// Keeps a delivery alive in the broker, from receive on.
    pub(crate) fn hold(&self, tag: Tag, now: Instant) {
        lock(&self.held).insert(tag, now);
    }

    /// Lets go of deliveries that are being settled.
    pub(crate) fn let_go(&self, tags: impl Iterator<Item = Tag>) {
        let mut held = lock(&self.held);
        tags.for_each(|tag| {
            held.remove(&tag);
        });
    }

    /// Asks every run to stop.
    pub(crate) fn cancel_all(&self) {
        for claim in lock(&self.rounds).iter().flatten() {
            claim.cancel();
        }
    }

    /// Claims that must stop by their own deadline, and those that are due for renewal, the oldest first.
    fn look(&self, now: Instant, renew_every: Duration) -> (Vec<Arc<ActiveClaim>>, Vec<Arc<ActiveClaim>>) {
        let mut overdue = Vec::new();
        let mut due = Vec::new();
        lock(&self.rounds).retain_mut(|round| {
            round.retain(|claim| !claim.has_ended());
            for claim in round.iter().filter(|claim| claim.lease().is_some()) {
                if claim.is_past_deadline(now) {
                    overdue.push(Arc::clone(claim));
                }
                if !claim.is_being_renewed()
                    && now.checked_sub(renew_every).is_some_and(|limit| claim.last_sent_before(limit))
                {
                    due.push(Arc::clone(claim));
                }
            }
            !round.is_empty()
        });
        due.sort_by_cached_key(|claim| claim.last_sent());
        (overdue, due)
    }

    /// Deliveries that were last extended `every` ago or earlier; they count as extended from `now` on, unless
    /// [`not_extended`](Self::not_extended) says otherwise.
    fn due_deliveries(&self, now: Instant, every: Duration) -> Vec<(Tag, Instant)> {
        let mut held = lock(&self.held);
        let mut due = Vec::new();
        for (tag, extended) in held.iter_mut() {
            if now.duration_since(*extended) >= every {
                due.push((*tag, std::mem::replace(extended, now)));
            }
        }
        due
    }

    /// The delivery was last extended at `before` after all: it is due at the next tick, unless it is being settled.
    fn not_extended(&self, tag: Tag, before: Instant) {
        if let Some(extended) = lock(&self.held).get_mut(&tag) {
            *extended = before;
        }
    }

    /// Asks the run of a delivery to stop; true if there is one. Earlier claims of the delivery may have ended and still be
    /// here.
    fn cancel_delivery(&self, tag: Tag) -> bool {
        let rounds = lock(&self.rounds);
        rounds.iter().flatten().filter(|claim| claim.tag() == tag).any(|claim| claim.cancel())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Beats until it is aborted.
pub(crate) async fn beat<R: Send + Sync + 'static>(context: Arc<Context<R>>, acker: Arc<dyn Acker>) {
    let lease = context.config.lease;
    let broker = context.capabilities.heartbeat.map(|period| period / 3);
    let period = (lease / 12).min(broker.map_or(lease, |every| every / 4)).max(Duration::from_millis(5));
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewing = JoinSet::new();
    let mut extending = JoinSet::new();
    let mut waiting = VecDeque::new();
    loop {
        tokio::select! {
            biased;
            _ = ticks.tick() => {}
            Some(_) = renewing.join_next(), if !waiting.is_empty() => {
                start_renewals(&context, &mut renewing, &mut waiting);
                continue;
            }
        }
        let now = Instant::now();
        let (overdue, due) = context.heartbeat.look(now, context.config.renew_every());
        for claim in overdue {
            if claim.cancel() {
                context.count(Counter::LeasesLost, 1);
                tracing::warn!(
                    scope = %context.scope, key = claim.key().map(tracing::field::display),
                    "a lease is about to end without a renewal; its run is asked to stop"
                );
            }
        }
        // The calls run beside the ticks, so that a store or broker that hangs does not keep deadlines from firing.
        while renewing.try_join_next().is_some() {}
        waiting = due.into();
        start_renewals(&context, &mut renewing, &mut waiting);
        while extending.try_join_next().is_some() {}
        if let Some(every) = broker
            && extending.is_empty()
        {
            let due = context.heartbeat.due_deliveries(now, every);
            if !due.is_empty() {
                extending.spawn(extend(Arc::clone(&context), Arc::clone(&acker), due));
            }
        }
    }
}

/// Renewal calls under way at most: one that hangs delays no other, and a slow store is not flooded.
const RENEWALS_IN_FLIGHT: usize = 32;

/// Starts calls for the claims that wait for their renewal, from the front, as long as there are calls to spare.
fn start_renewals<R: Send + Sync + 'static>(
    context: &Arc<Context<R>>,
    renewing: &mut JoinSet<()>,
    waiting: &mut VecDeque<Arc<ActiveClaim>>,
) {
    while renewing.len() < RENEWALS_IN_FLIGHT && !waiting.is_empty() {
        let chunk: Vec<_> = waiting.drain(..waiting.len().min(context.config.max_batch)).collect();
        chunk.iter().for_each(|claim| claim.set_being_renewed(true));
        renewing.spawn(renew(Arc::clone(context), chunk));
    }
}

async fn renew<R: Send + Sync + 'static>(context: Arc<Context<R>>, chunk: Vec<Arc<ActiveClaim>>) {
    let lease_for = context.config.lease;
    let batch: Vec<_> = chunk
        .iter()
        .filter_map(|claim| claim.lease())
        .map(|lease| RenewRequest { lease, lease_for, started: false })
        .collect();
    let sent = Instant::now();
    failpoints::hit(Step::RenewSent);
    // A call that hangs must leave time for another one within the lease.
    let limit = context.config.store_timeout.min(context.config.renew_every());
    let call = context.store.renew(&context.scope, &batch);
    let answers = crate::coalesce::bounded(limit, "renew leases", batch.len(), call).await;
    context.count_errors(&answers);
    for (claim, answer) in chunk.iter().zip(answers) {
        match answer {
            Ok(Renewal::Renewed) => {
                claim.renewed(sent, sent + lease_for - context.config.lease_margin());
            }
            Ok(Renewal::Lost) if claim.has_ended() => {}
            Ok(Renewal::Lost) => {
                if claim.cancel() {
                    context.count(Counter::LeasesLost, 1);
                    tracing::warn!(
                        scope = %context.scope, key = claim.key().map(tracing::field::display),
                        "a lease was lost to another claim; its run is asked to stop"
                    );
                }
            }
            // Not renewed as far as we know: the next tick tries again, and the deadline stands.
            Err(_) => {}
        }
        claim.set_being_renewed(false);
    }
}

async fn extend<R: Send + Sync + 'static>(
    context: Arc<Context<R>>,
    acker: Arc<dyn Acker>,
    due: Vec<(Tag, Instant)>,
) {
    let tags: Vec<_> = due.iter().map(|(tag, _)| *tag).collect();
    let limit = context.config.store_timeout;
    let answers = crate::coalesce::bounded(limit, "extend deliveries", tags.len(), acker.extend(&tags)).await;
    let mut failed = 0;
    let mut why = None;
    for ((tag, before), answer) in due.into_iter().zip(answers) {
        match answer {
            Ok(Settled::Done) => {}
            Ok(Settled::TooLate) => {
                context.heartbeat.let_go(std::iter::once(tag));
                if context.heartbeat.cancel_delivery(tag) {
                    tracing::warn!(scope = %context.scope, ?tag, "the broker has taken a delivery back; its run is asked to stop");
                }
            }
            // The next tick tries again.
            Err(error) => {
                context.heartbeat.not_extended(tag, before);
                failed += 1;
                why.get_or_insert(error);
            }
        }
    }
    if let Some(error) = why {
        tracing::warn!(scope = %context.scope, ?error, failed, "deliveries were not extended; it is tried again at once");
    }
}
