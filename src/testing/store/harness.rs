//! The store under test: [`StoreHarness`] and its extensions, and the implementation for the memory store.

use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::checkpoint::CheckpointStore;
use crate::key::Key;
use crate::store::{KeyState, MemoryStore, StoreAdmin, TransactionalStore};

/// The durations the checks work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The lease of a claim.
    pub lease: Duration,
    /// The TTL of records, several times the lease.
    pub ttl: Duration,
    /// The precision of time: how late an answer may come, and how close to a boundary a check goes. Less than a fifth
    /// of the lease.
    pub tick: Duration,
}

impl Timing {
    /// For stores whose clock stands still until it is advanced.
    pub const VIRTUAL: Self = Self {
        lease: Duration::from_secs(30),
        ttl: Duration::from_secs(3_600),
        tick: Duration::from_millis(1),
    };

    /// For stores with a real clock that can be moved forward: room for a slow machine.
    pub const SHIFTED: Self = Self {
        lease: Duration::from_secs(60),
        ttl: Duration::from_secs(3_600),
        tick: Duration::from_secs(10),
    };

    /// For stores whose clock cannot be moved: the checks wait.
    pub const REAL: Self = Self {
        lease: Duration::from_millis(1_500),
        ttl: Duration::from_millis(4_000),
        tick: Duration::from_millis(250),
    };
}

/// A store under test. Each value has data of its own, empty at first.
#[async_trait]
pub trait StoreHarness: Send + Sync {
    /// The store.
    type Store: StoreAdmin;

    /// A handle to the harness's data. Two handles are two workers: as far apart as the store allows.
    async fn store(&self) -> Self::Store;

    /// Lets `by` pass on the store's clock.
    async fn advance(&self, by: Duration);

    /// The durations to work with.
    fn timing(&self) -> Timing;

    /// The key that [`list`](StoreAdmin::list) shows for the record of `key` in `state`: the key, unless the store keeps only its
    /// beginning.
    fn listed_key(&self, key: Key, state: KeyState) -> Key {
        let _ = state;
        key
    }
}

/// A store under test that keeps checkpoints too.
pub trait CheckpointHarness: StoreHarness<Store: CheckpointStore> {}

impl<H: StoreHarness<Store: CheckpointStore>> CheckpointHarness for H {}

/// A transactional store under test, with a table of effects beside its own tables.
#[async_trait]
pub trait TransactionalHarness: StoreHarness<Store: TransactionalStore> {
    /// Writes `effect` through the transaction, as a handler would.
    async fn write_effect(&self, tx: <Self::Store as TransactionalStore>::Tx<'_>, effect: &str);

    /// All effects that are committed, in any order.
    async fn effects(&self) -> Vec<String>;
}

/// The harness of [`MemoryStore`]. On a current-thread runtime it pauses tokio's clock.
#[derive(Debug)]
pub struct MemoryHarness {
    store: MemoryStore,
}

impl MemoryHarness {
    /// An empty store.
    ///
    /// # Panics
    /// Outside a tokio runtime, or if the clock is paused already.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            tokio::time::pause();
        }
        Self { store: MemoryStore::new() }
    }
}

#[async_trait]
impl StoreHarness for MemoryHarness {
    type Store = MemoryStore;

    async fn store(&self) -> MemoryStore {
        self.store.clone()
    }

    async fn advance(&self, by: Duration) {
        tokio::time::advance(by).await;
    }

    fn timing(&self) -> Timing {
        Timing::VIRTUAL
    }
}
