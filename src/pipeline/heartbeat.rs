//! One heartbeat for two leases: extends claims in the store and deliveries in the broker, and cancels the run of a
//! handler when either is lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::context::Context;
use crate::active_claim::SharedClaim;
use crate::consumer::{Acker, Settled};
use crate::delivery::Tag;
use crate::failpoints::{self, Step};
use crate::store::{RenewRequest, Renewal};
use crate::telemetry::Counter;

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
        let (overdue, due) = context.kept_alive.look(now, context.config.renew_every());
        for claim in overdue {
            if claim.cancel() {
                context.count(Counter::LeasesLost, 1);
                tracing::warn!(
                    scope = %context.scope, key = claim.key().map(tracing::field::display),
                    "lease not renewed in time; run cancelled"
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
            let due = context.kept_alive.due_deliveries(now, every);
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
    waiting: &mut VecDeque<SharedClaim>,
) {
    while renewing.len() < RENEWALS_IN_FLIGHT && !waiting.is_empty() {
        let chunk: Vec<_> = waiting.drain(..waiting.len().min(context.config.max_batch)).collect();
        chunk.iter().for_each(|claim| claim.set_being_renewed(true));
        renewing.spawn(renew(Arc::clone(context), chunk));
    }
}

async fn renew<R: Send + Sync + 'static>(context: Arc<Context<R>>, chunk: Vec<SharedClaim>) {
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
                        "lease lost to another claim; run cancelled"
                    );
                }
            }
            // Not renewed as far as we know: the next tick retries, and the deadline remains.
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
                context.kept_alive.let_go(std::iter::once(tag));
                if context.kept_alive.cancel_delivery(tag) {
                    tracing::warn!(scope = %context.scope, ?tag, "delivery taken back by the broker; run cancelled");
                }
            }
            // The next tick tries again.
            Err(error) => {
                context.kept_alive.not_extended(tag, before);
                failed += 1;
                why.get_or_insert(error);
            }
        }
    }
    if let Some(error) = why
        && let Some(left_out) =
            context.log.extensions.allow(&format!("{}: {:?}", error.operation(), error.kind()))
    {
        tracing::warn!(scope = %context.scope, ?error, failed, left_out, "delivery extension failed; retrying");
    }
}
