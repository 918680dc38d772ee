//! The reference store, in memory: [`MemoryStore`].

mod slots;
mod table;

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::time::Instant;

use self::table::Table;
use super::transition::{Moment, micros};
use super::{
    Advice, Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Expiring,
    FailRequest, Failure, KeyRecord, KeyStats, Lease, ListQuery, Redrive, RedriveRequest, RenewRequest,
    Renewal, Store, StoreAdmin, StoreCapabilities,
};
#[cfg(any(test, feature = "testing"))]
use super::{
    KeyMark, MarkedKey,
    transition::{Record, Step},
};
use crate::checkpoint::{Checkpoint, CheckpointStore};
use crate::error::Error;
use crate::key::{Key, Scope};

/// Keeps keys in this process: the reference for every other store, and the one for tests and simulations.
///
/// Its clock is tokio's, so `tokio::time::pause` and `advance` rule leases and TTLs. A clone is another handle to the
/// same data. What it does not do: survive the process, or be shared between processes; and it has no limit of its
/// own, so it holds as many records as the TTL lets gather.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), onceward::Error> {
/// use onceward::store::{Claim, ClaimRequest, ClaimTerms, Entropy};
/// use onceward::{Key, MemoryStore, Scope, Store};
/// use std::time::Duration;
///
/// let store = MemoryStore::new();
/// let scope = Scope::parse("billing")?;
/// let terms = ClaimTerms {
///     lease: Duration::from_secs(30),
///     max_attempts: 5,
///     ttl: Duration::from_secs(7 * 24 * 3600),
/// };
/// let request = ClaimRequest {
///     key: Key::from_bytes([7; 16]),
///     owner: Entropy::system().token(),
///     fingerprint: None,
///     generation: 0,
/// };
/// let answers = store.claim(&scope, &terms, &[request]).await;
/// assert!(matches!(answers[0], Ok(Claim::Claimed(_))));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started_at: Instant,
    /// The clock's reading at `started_at`.
    base: u64,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    scopes: HashMap<Scope, Table>,
    fence_floor: u64,
    checkpoints: HashMap<Scope, HashMap<String, Checkpoint>>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store whose fences start from the system's clock, so that they grow across restarts as well.
    pub fn new() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::starting_at(since_epoch)
    }

    /// An empty store whose clock reads `clock` now. The same fences in every run: for simulations.
    pub fn starting_at(clock: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                started_at: Instant::now(),
                base: micros(clock),
                tables: Mutex::new(Tables::default()),
            }),
        }
    }

    /// Locks the tables and reads the clock *after* that, so that fences are given out in the clock's order.
    fn open(&self) -> (MutexGuard<'_, Tables>, Moment) {
        // A panic cannot leave a record half written: every transition assigns whole values.
        let tables = self.shared.tables.lock();
        let now = self.shared.base + micros(self.shared.started_at.elapsed());
        let fence_floor = tables.fence_floor;
        (tables, Moment { now, fence_floor })
    }

    /// Completes a pending claim and does `apply` under the same lock, or neither: what a transaction is to a database.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn commit(
        &self,
        scope: &Scope,
        request: &CompleteRequest,
        apply: impl FnOnce(),
    ) -> super::Commit {
        let (mut tables, at) = self.open();
        let table = tables.scopes.get_mut(scope);
        let answer =
            table.and_then(|table| table.update(&request.lease.key, |record| record.commit(at, request)));
        if answer == Some(super::Commit::Committed) {
            apply();
        }
        answer.unwrap_or(super::Commit::Fenced)
    }

    /// What keys would find that a transaction is to complete. Nothing is written.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn marked(&self, scope: &Scope, ttl: Duration, marks: &[KeyMark]) -> Vec<MarkedKey> {
        let look = |table: &mut Table, at, mark: &KeyMark| {
            let step = |record: &mut Record| Step { changed: false, ..record.clone().mark(at, ttl, mark) };
            table.update(&mark.key, step).unwrap_or(MarkedKey::Fresh)
        };
        self.apply(scope, marks, look).into_iter().flatten().collect()
    }

    /// Completes keys and does `apply` under the same lock; neither if one of the keys is not fresh any more, or `apply`
    /// answers false.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn commit_marks(
        &self,
        scope: &Scope,
        ttl: Duration,
        marks: &[KeyMark],
        apply: impl FnOnce() -> bool,
    ) -> super::Commit {
        let (mut tables, at) = self.open();
        let table = tables.scopes.entry(scope.clone()).or_default();
        let mut fresh = |mark: &KeyMark| {
            let step = |record: &mut Record| Step { changed: false, ..record.clone().mark(at, ttl, mark) };
            table.update(&mark.key, step).is_none_or(|found| found == MarkedKey::Fresh)
        };
        if !marks.iter().all(&mut fresh) || !apply() {
            return super::Commit::Fenced;
        }
        for mark in marks {
            table.write(mark.key, |record| record.mark(at, ttl, mark));
        }
        super::Commit::Committed
    }

    /// As [`commit`](Self::commit) for several claims: all of them are pending, or nothing happens.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn commit_shared(
        &self,
        scope: &Scope,
        requests: &[CompleteRequest],
        apply: impl FnOnce(),
    ) -> super::SharedCommit {
        use super::{Commit, SharedCommit};
        let (mut tables, at) = self.open();
        let Some(table) = tables.scopes.get_mut(scope) else { return SharedCommit::RolledBack };
        let mut answers = |keeps: bool| {
            requests.iter().all(|request| {
                let commit = |record: &mut Record| match keeps {
                    true => record.commit(at, request),
                    // On a copy: whether all of them would be.
                    false => Step { changed: false, ..record.clone().commit(at, request) },
                };
                table.update(&request.lease.key, commit) == Some(Commit::Committed)
            })
        };
        if !(answers(false) && answers(true)) {
            return SharedCommit::RolledBack;
        }
        apply();
        SharedCommit::Committed
    }

    fn read<T>(&self, scope: &Scope, look: impl FnOnce(&Table, Moment) -> T) -> Option<T> {
        let (tables, at) = self.open();
        tables.scopes.get(scope).map(|table| look(table, at))
    }

    /// Applies `step` to every item of a batch under one lock.
    fn apply<I, T>(
        &self,
        scope: &Scope,
        batch: &[I],
        step: impl Fn(&mut Table, Moment, &I) -> T,
    ) -> Vec<Result<T, Error>> {
        let (mut tables, at) = self.open();
        if !tables.scopes.contains_key(scope) {
            tables.scopes.insert(scope.clone(), Table::default());
        }
        let Tables { scopes, fence_floor, .. } = &mut *tables;
        let Some(table) = scopes.get_mut(scope) else { return Vec::new() };
        let answers = batch.iter().map(|item| Ok(step(table, at, item))).collect();
        *fence_floor = table.take_fence_floor().max(*fence_floor);
        answers
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new("memory")
    }

    async fn check(&self) -> Result<Vec<Advice>, Error> {
        Ok(vec![Advice::warning(
            "store-in-memory",
            "the memory store forgets every key when this process ends; use a durable store outside tests",
        )])
    }

    async fn claim(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        self.apply(scope, batch, |table, at, request| {
            table.write(request.key, |record| record.claim(at, terms, request))
        })
    }

    async fn complete(&self, scope: &Scope, batch: &[CompleteRequest]) -> Vec<Result<Completion, Error>> {
        self.apply(scope, batch, |table, at, request| {
            table.write(request.lease.key, |record| record.complete(at, request))
        })
    }

    async fn renew(&self, scope: &Scope, batch: &[RenewRequest]) -> Vec<Result<Renewal, Error>> {
        self.apply(scope, batch, |table, at, request| {
            table.update(&request.lease.key, |record| record.renew(at, request)).unwrap_or(Renewal::Lost)
        })
    }

    async fn fail(&self, scope: &Scope, batch: &[FailRequest]) -> Vec<Result<Failure, Error>> {
        self.apply(scope, batch, |table, at, request| {
            table.update(&request.lease.key, |record| record.fail(at, request)).unwrap_or(Failure::Lost)
        })
    }

    async fn bury(&self, scope: &Scope, batch: &[BuryRequest]) -> Vec<Result<Burial, Error>> {
        self.apply(scope, batch, |table, at, request| {
            table.update(&request.lease.key, |record| record.bury(at, request)).unwrap_or(Burial::Lost)
        })
    }

    async fn release(&self, scope: &Scope, batch: &[Lease]) -> Vec<Result<bool, Error>> {
        self.apply(scope, batch, |table, at, lease| {
            table.update(&lease.key, |record| record.release(at, lease)).unwrap_or(false)
        })
    }

    fn expiring(&self) -> Option<&dyn Expiring> {
        Some(self)
    }
}

#[async_trait]
impl StoreAdmin for MemoryStore {
    async fn redrive(&self, scope: &Scope, batch: &[RedriveRequest]) -> Vec<Result<Redrive, Error>> {
        self.apply(scope, batch, |table, at, request| {
            table.update(&request.key, |record| record.redrive(at, request)).unwrap_or(Redrive::NotDead)
        })
    }

    async fn forget(&self, scope: &Scope, keys: &[Key]) -> Vec<Result<bool, Error>> {
        self.apply(scope, keys, |table, at, key| table.forget(key, at))
    }

    async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<KeyRecord>, Error> {
        Ok(self.read(scope, |table, at| table.inspect(key, at)).flatten())
    }

    async fn list(&self, scope: &Scope, query: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        Ok(self.read(scope, |table, at| table.list(query, at)).unwrap_or_default())
    }

    async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        Ok(self.read(scope, Table::stats).unwrap_or_default())
    }
}

#[async_trait]
impl Expiring for MemoryStore {
    async fn purge(&self, limit: u32) -> Result<u64, Error> {
        let (mut tables, at) = self.open();
        let Tables { scopes, fence_floor, .. } = &mut *tables;
        let mut left = u64::from(limit);
        for table in scopes.values_mut() {
            left -= table.purge(at, left);
            *fence_floor = table.take_fence_floor().max(*fence_floor);
        }
        Ok(u64::from(limit) - left)
    }

    fn purge_interval(&self) -> Duration {
        Duration::from_secs(10)
    }
}

#[async_trait]
impl CheckpointStore for MemoryStore {
    async fn load_checkpoint(&self, scope: &Scope, source: &str) -> Result<Option<Checkpoint>, Error> {
        let (tables, _) = self.open();
        Ok(tables.checkpoints.get(scope).and_then(|sources| sources.get(source)).cloned())
    }

    async fn save_checkpoint(
        &self,
        scope: &Scope,
        source: &str,
        checkpoint: &Checkpoint,
    ) -> Result<(), Error> {
        let (mut tables, _) = self.open();
        tables.checkpoints.entry(scope.clone()).or_default().insert(source.to_owned(), checkpoint.clone());
        Ok(())
    }
}
