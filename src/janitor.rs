//! Removes expired records from stores that do not expire by themselves: [`Janitor`].

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::error::Error;
use crate::store::{Expiring, Store};
use crate::telemetry::{Counter, Counters, RateLimited};

/// Records removed in one call: small enough that claims do not wait behind it.
const BATCH: u32 = 500;

/// Removes expired records at the store's own interval, from [`start`](Self::start) until it is dropped.
///
/// A pipeline and a [`Deduplicator`](crate::Deduplicator) have one. Others that write keys (a
/// [`PositionStore`](crate::store::PositionStore) alone) start their own; several beside each other do no harm.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::sync::Arc;
/// use onceward::telemetry::Counters;
/// use onceward::{Janitor, MemoryStore};
/// let store = Arc::new(MemoryStore::new());
/// let _janitor = Janitor::start(store, Arc::new(Counters::default()));
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping it ends its work"]
pub struct Janitor(AbortHandle);

impl Janitor {
    /// Starts the task. It counts what it removes in [`Counter::Purged`] and keeps [`Counters::expiry_lag`]; for a store
    /// that expires by itself it does nothing.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(store: Arc<dyn Store>, counters: Arc<Counters>) -> Self {
        Self(tokio::spawn(purge(store, counters)).abort_handle())
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Removes everything that has expired by now, in small calls, and answers how many records that were.
///
/// # Errors
/// [`Error`] if the store cannot answer. Records removed until then stay removed.
pub async fn purge_expired(store: &dyn Expiring) -> Result<u64, Error> {
    let mut removed = 0;
    loop {
        let more = store.purge(BATCH).await?;
        removed += more;
        if more < u64::from(BATCH) {
            return Ok(removed);
        }
        tokio::task::yield_now().await;
    }
}

async fn purge(store: Arc<dyn Store>, counters: Arc<Counters>) {
    let Some(period) = store.expiring().map(Expiring::purge_interval) else { return };
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let failures = RateLimited::per(Duration::from_secs(300));
    loop {
        ticks.tick().await;
        let Some(expiring) = store.expiring() else { return };
        match purge_expired(expiring).await {
            Ok(removed) => counters.add(Counter::Purged, removed),
            Err(error) => match failures.allow(error.operation()) {
                Some(left_out) => tracing::warn!(
                    ?error,
                    left_out,
                    "purge failed; expired records count as absent, but the store grows"
                ),
                None => tracing::debug!(?error, "purge failed"),
            },
        }
        if let Ok(lag) = expiring.expiry_lag().await {
            counters.set_expiry_lag(lag);
        }
    }
}
