//! Takes partitions over in the database when they are assigned: [`Owners`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use onceward::store::{LogPartition, Ownership, PositionStore};
use onceward::{Error, Position, Scope};
use tokio::runtime::Handle;

use onceward_kafka::internal::Starts;

/// How long the database may take until a partition is given up.
const PATIENCE: Duration = Duration::from_secs(30);
const BREATH: Duration = Duration::from_millis(200);

/// The partitions that this process owns in the database, each under the epoch of its last assignment.
pub(super) struct Owners<S> {
    pub(super) store: Arc<S>,
    pub(super) scope: Scope,
    pub(super) group: Arc<str>,
    runtime: Handle,
    owned: Mutex<Owned>,
}

/// By incarnation and partition.
type Owned = HashMap<(Arc<str>, u32), Arc<Ownership>>;

impl<S: PositionStore> Owners<S> {
    pub(super) fn new(store: Arc<S>, scope: Scope, group: &str) -> Self {
        let runtime = Handle::current();
        Self { store, scope, group: group.into(), runtime, owned: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Owned> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under which epoch records at `position` are processed.
    pub(super) fn of(&self, position: &Position) -> Option<Arc<Ownership>> {
        self.lock().get(&(Arc::clone(&position.incarnation), position.partition)).cloned()
    }
}

impl<S: PositionStore> Starts for Owners<S> {
    /// Runs on the poll thread, before the partition's first record is fetched.
    fn start(&self, incarnation: &Arc<str>, partition: u32, end: u64) -> Result<Option<u64>, Error> {
        let named =
            LogPartition { group: Arc::clone(&self.group), incarnation: Arc::clone(incarnation), partition };
        let until = Instant::now() + PATIENCE;
        let owned = loop {
            match self.runtime.block_on(self.store.own(&self.scope, &named)) {
                Ok(owned) => break owned,
                Err(error) if error.is_retryable() && Instant::now() < until => {
                    tracing::warn!(%error, partition, "a partition cannot be taken over in the database yet");
                    std::thread::sleep(BREATH);
                }
                Err(error) => return Err(error),
            }
        };
        owned.check_end(end)?;
        let watermark = owned.watermark;
        self.lock().insert((Arc::clone(incarnation), partition), Arc::new(owned));
        Ok(watermark)
    }
}
