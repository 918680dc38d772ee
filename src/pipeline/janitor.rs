//! Removes expired records from stores that do not expire by themselves.

use std::sync::Arc;

use tokio::time::{Instant, MissedTickBehavior};

use super::shared::Shared;
use crate::telemetry::Counter;

/// Records removed in one call: small enough that claims do not wait behind it.
const BATCH: u32 = 500;

/// Purges until it is aborted.
pub(crate) async fn purge<R: Send + Sync + 'static>(shared: Arc<Shared<R>>) {
    let Some(period) = shared.store.purge_interval() else { return };
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        loop {
            match shared.store.purge(BATCH).await {
                Ok(removed) => {
                    shared.count(Counter::Purged, usize::try_from(removed).unwrap_or(usize::MAX));
                    if removed < u64::from(BATCH) {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    tracing::debug!(
                        ?error,
                        "expired records were not removed; they count as absent all the same"
                    );
                    break;
                }
            }
        }
        if let Ok(lag) = shared.store.expiry_lag().await {
            shared.counters.set_expiry_lag(lag);
        }
    }
}
