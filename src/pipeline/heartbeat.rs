//! One heartbeat for two leases: keeps claims alive in the store and deliveries alive in the broker, and tells a handler
//! to stop when either is lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::shared::Shared;
use super::work::Start;
use crate::consumer::{Acker, Settled};
use crate::delivery::Tag;
use crate::failpoints::{self, Step};
use crate::handler::claim::ActiveClaim;
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

    /// Claims that must stop by their own deadline, and those that are due for renewal.
    fn look(&self, now: Instant, renew_every: Duration) -> (Vec<Arc<ActiveClaim>>, Vec<Arc<ActiveClaim>>) {
        let mut overdue = Vec::new();
        let mut due = Vec::new();
        lock(&self.rounds).retain_mut(|round| {
            round.retain(|claim| !claim.has_ended());
            for claim in round.iter().filter(|claim| claim.lease().is_some()) {
                if claim.is_past_deadline(now) {
                    overdue.push(Arc::clone(claim));
                }
                if now.checked_sub(renew_every).is_some_and(|limit| claim.last_sent_before(limit)) {
                    due.push(Arc::clone(claim));
                }
            }
            !round.is_empty()
        });
        (overdue, due)
    }

    /// Deliveries that were last extended before `limit`; they count as extended from `now` on.
    fn due_deliveries(&self, now: Instant, every: Duration) -> Vec<Tag> {
        let mut held = lock(&self.held);
        let mut due = Vec::new();
        for (tag, extended) in held.iter_mut() {
            if now.duration_since(*extended) >= every {
                *extended = now;
                due.push(*tag);
            }
        }
        due
    }

    fn cancel_delivery(&self, tag: Tag) -> bool {
        let rounds = lock(&self.rounds);
        rounds.iter().flatten().find(|claim| claim.tag() == tag).is_some_and(|claim| claim.cancel())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Beats until it is aborted.
pub(crate) async fn beat<R: Send + Sync + 'static>(shared: Arc<Shared<R>>, acker: Arc<dyn Acker>) {
    let lease = shared.config.lease;
    let broker = shared.capabilities.heartbeat.map(|period| period / 3);
    let period = (lease / 12).min(broker.map_or(lease, |every| every / 4)).max(Duration::from_millis(5));
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewing = tokio::task::JoinSet::new();
    let mut extending = tokio::task::JoinSet::new();
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let (overdue, due) = shared.heartbeat.look(now, shared.config.renew_every());
        for claim in overdue {
            if claim.cancel() {
                shared.count(Counter::LeasesLost, 1);
                tracing::warn!(key = ?claim.key(), "a lease is about to end unrenewed; its run is asked to stop");
            }
        }
        // The calls run beside the ticks, so that a store or broker that hangs does not keep deadlines from firing.
        while renewing.try_join_next().is_some() {}
        if renewing.is_empty() && !due.is_empty() {
            renewing.spawn(renew(Arc::clone(&shared), due));
        }
        while extending.try_join_next().is_some() {}
        if let Some(every) = broker
            && extending.is_empty()
        {
            let tags = shared.heartbeat.due_deliveries(now, every);
            if !tags.is_empty() {
                extending.spawn(extend(Arc::clone(&shared), Arc::clone(&acker), tags));
            }
        }
    }
}

async fn renew<R: Send + Sync + 'static>(shared: Arc<Shared<R>>, due: Vec<Arc<ActiveClaim>>) {
    for chunk in due.chunks(shared.config.max_batch) {
        let lease_for = shared.config.lease;
        let batch: Vec<_> = chunk
            .iter()
            .filter_map(|claim| claim.lease())
            .map(|lease| RenewRequest { lease, lease_for, started: false })
            .collect();
        let sent = Instant::now();
        failpoints::hit(Step::RenewSent);
        // A call that hangs must leave time for another one within the lease.
        let limit = shared.config.store_timeout.min(shared.config.renew_every());
        let call = shared.store.renew(&shared.scope, &batch);
        let answers = super::gather::bounded(limit, "renew leases", batch.len(), call).await;
        shared.count_errors(&answers);
        for (claim, answer) in chunk.iter().zip(answers) {
            match answer {
                Ok(Renewal::Renewed) => {
                    claim.renewed(sent, sent + lease_for - shared.config.lease_margin());
                }
                Ok(Renewal::Lost) if claim.has_ended() => {}
                Ok(Renewal::Lost) => {
                    if claim.cancel() {
                        shared.count(Counter::LeasesLost, 1);
                        tracing::warn!(key = ?claim.key(), "a lease was lost to another claim; its run is asked to stop");
                    }
                }
                // Not renewed as far as we know: the next tick tries again, and the deadline stands.
                Err(_) => {}
            }
        }
    }
}

async fn extend<R: Send + Sync + 'static>(shared: Arc<Shared<R>>, acker: Arc<dyn Acker>, tags: Vec<Tag>) {
    let limit = shared.config.store_timeout;
    let answers = super::gather::bounded(limit, "extend deliveries", tags.len(), acker.extend(&tags)).await;
    let mut failed = 0;
    let mut why = None;
    for (tag, answer) in tags.into_iter().zip(answers) {
        match answer {
            Ok(Settled::Done) => {}
            Ok(Settled::TooLate) => {
                shared.heartbeat.let_go(std::iter::once(tag));
                if shared.heartbeat.cancel_delivery(tag) {
                    tracing::warn!(?tag, "the broker has taken a delivery back; its run is asked to stop");
                }
            }
            // The next tick tries again.
            Err(error) => {
                failed += 1;
                why.get_or_insert(error);
            }
        }
    }
    if let Some(error) = why {
        tracing::warn!(?error, failed, "deliveries were not extended");
    }
}
