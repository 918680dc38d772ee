//! Ownership of assigned partitions in the database: [`OwnedPartitions`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use onceward::store::{LogPartition, Ownership, PositionStore};
use onceward::{Error, Position, Scope};
use onceward_kafka::internal::StoredPositions;
use tokio::runtime::Handle;

/// How long taking ownership may take before the partition is given up, and the delay between attempts.
const OWN_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// The partitions that this process owns in the database, each under the epoch of its last assignment.
pub(super) struct OwnedPartitions<S> {
    pub(super) store: Arc<S>,
    pub(super) scope: Scope,
    pub(super) group: Arc<str>,
    runtime: Handle,
    owned: Mutex<OwnershipByLog>,
}

/// By incarnation and partition.
type OwnershipByLog = HashMap<(Arc<str>, u32), Arc<Ownership>>;

impl<S: PositionStore> OwnedPartitions<S> {
    pub(super) fn new(store: Arc<S>, scope: Scope, group: &str) -> Self {
        let runtime = Handle::current();
        Self { store, scope, group: group.into(), runtime, owned: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, OwnershipByLog> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the ownership under which a record at `position` is processed.
    pub(super) fn owner_at(&self, position: &Position) -> Option<Arc<Ownership>> {
        self.lock().get(&(Arc::clone(&position.incarnation), position.partition)).cloned()
    }
}

impl<S: PositionStore> StoredPositions for OwnedPartitions<S> {
    /// Takes ownership of a partition. Runs on the poll thread, before the partition's first record is fetched.
    fn start_offset(
        &self,
        incarnation: &Arc<str>,
        partition: u32,
        log_end: u64,
    ) -> Result<Option<u64>, Error> {
        let named =
            LogPartition { group: Arc::clone(&self.group), incarnation: Arc::clone(incarnation), partition };
        let until = Instant::now() + OWN_TIMEOUT;
        let owned = loop {
            match self.runtime.block_on(self.store.own(&self.scope, &named)) {
                Ok(owned) => break owned,
                Err(error) if error.is_retryable() && Instant::now() < until => {
                    tracing::warn!(%error, partition, "taking ownership of a partition failed; retrying");
                    std::thread::sleep(RETRY_DELAY);
                }
                Err(error) => return Err(error),
            }
        };
        owned.check_end(log_end)?;
        let watermark = owned.watermark;
        self.lock().insert((Arc::clone(incarnation), partition), Arc::new(owned));
        Ok(watermark)
    }
}
