//! A transactional store in memory: [`MemoryInbox`].

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::memory_positions::{Marked, Positions};
use crate::error::Error;
use crate::key::{Key, Scope};
use crate::store::{
    Advice, Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, Commit, CompleteRequest, Completion,
    Expiring, FailRequest, Failure, KeyRecord, KeyState, KeyStats, Lease, ListQuery, MemoryStore, Redrive,
    RedriveRequest, RenewRequest, Renewal, SharedCommit, Store, StoreAdmin, StoreCapabilities,
    TransactionalStore,
};

/// A [`MemoryStore`] with a list of effects beside it, both written in one step: what an inbox table is to a database.
/// A transaction gathers effects and knows nothing of other transactions, but for the keys that it marks.
#[derive(Clone, Debug, Default)]
pub struct MemoryInbox {
    pub(super) store: MemoryStore,
    effects: Arc<Mutex<Vec<String>>>,
    pub(super) positions: Positions,
    transactions: Option<usize>,
    open: Arc<OpenTransaction>,
    /// What a crash forgets: claims of `claim_for_commit` that no later write has synced.
    unsynced: Arc<Mutex<Vec<(Scope, Lease)>>>,
}

#[derive(Debug, Default)]
struct OpenTransaction {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// An open transaction of a [`MemoryInbox`].
#[derive(Debug)]
pub struct MemoryTransaction {
    effects: Vec<String>,
    pub(super) marked: Marked,
    /// So many of them are kept.
    kept: usize,
    open: Arc<OpenTransaction>,
}

impl Drop for MemoryTransaction {
    fn drop(&mut self) {
        self.open.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl MemoryTransaction {
    /// Makes an effect happen, if the transaction commits.
    pub fn effect(&mut self, effect: impl Into<String>) {
        self.effects.push(effect.into());
    }
}

impl MemoryInbox {
    /// Around `store`, without an effect so far.
    pub fn new(store: MemoryStore) -> Self {
        Self { store, ..Self::default() }
    }

    /// A store that declares this many transactions that can be open at once.
    #[must_use]
    pub fn with_transactions(mut self, most: usize) -> Self {
        self.transactions = Some(most);
        self
    }

    /// How many transactions were open at once at most.
    pub fn most_open(&self) -> usize {
        self.open.most.load(Ordering::Relaxed)
    }

    /// Forgets what a crash of the store may forget: first claims of transactional runs
    /// ([`claim_for_commit`](Store::claim_for_commit)) whose keys have not been written since. Returns the leases that are lost.
    pub async fn crash(&self) -> Vec<Lease> {
        let mut lost = Vec::new();
        let unsynced = std::mem::take(&mut *self.unsynced.lock());
        for (scope, lease) in unsynced {
            let record = self.store.inspect(&scope, &lease.key).await.ok().flatten();
            let held = |record: KeyRecord| record.state == KeyState::Pending && record.fence == lease.fence;
            if record.is_some_and(held) {
                self.store.forget(&scope, &[lease.key]).await;
                lost.push(lease);
            }
        }
        lost
    }

    pub(super) fn opened(&self) -> MemoryTransaction {
        let now = self.open.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.most.fetch_max(now, Ordering::Relaxed);
        MemoryTransaction {
            effects: Vec::new(),
            marked: Marked::default(),
            kept: 0,
            open: Arc::clone(&self.open),
        }
    }

    pub(super) fn happen(&self, conn: &mut MemoryTransaction) {
        let mut effects = self.effects.lock();
        effects.append(&mut conn.effects);
    }

    /// The effects that are committed, in order.
    pub fn effects(&self) -> Vec<String> {
        self.effects.lock().clone()
    }
}

#[async_trait]
impl TransactionalStore for MemoryInbox {
    type Conn = MemoryTransaction;
    type Tx<'c> = &'c mut MemoryTransaction;

    fn max_transactions(&self) -> Option<usize> {
        self.transactions
    }

    async fn begin(&self) -> Result<MemoryTransaction, Error> {
        Ok(self.opened())
    }

    fn lend<'c>(&self, conn: &'c mut MemoryTransaction) -> &'c mut MemoryTransaction {
        conn
    }

    async fn commit(
        &self,
        mut conn: MemoryTransaction,
        scope: &Scope,
        request: &CompleteRequest,
    ) -> Result<Commit, Error> {
        Ok(self.store.commit(scope, request, || self.happen(&mut conn)))
    }

    async fn rollback(&self, _conn: MemoryTransaction) {}

    fn shares_transactions(&self) -> bool {
        true
    }

    async fn begin_shared(&self) -> Result<MemoryTransaction, Error> {
        Ok(self.opened())
    }

    async fn keep(&self, conn: &mut MemoryTransaction) -> Result<(), Error> {
        conn.kept = conn.effects.len();
        Ok(())
    }

    async fn undo(&self, conn: &mut MemoryTransaction) -> Result<(), Error> {
        conn.effects.truncate(conn.kept);
        Ok(())
    }

    async fn commit_shared(
        &self,
        mut conn: MemoryTransaction,
        scope: &Scope,
        requests: &[CompleteRequest],
    ) -> Result<SharedCommit, Error> {
        Ok(self.store.commit_shared(scope, requests, || self.happen(&mut conn)))
    }
}

#[async_trait]
impl Store for MemoryInbox {
    fn capabilities(&self) -> StoreCapabilities {
        self.store.capabilities()
    }

    async fn check(&self) -> Result<Vec<Advice>, Error> {
        self.store.check().await
    }

    async fn claim(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        self.store.claim(scope, terms, batch).await
    }

    async fn claim_for_commit(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        let answers = self.store.claim(scope, terms, batch).await;
        let first = |answer: &Result<Claim, Error>| match answer {
            Ok(Claim::Claimed(claimed)) if claimed.attempt == 1 && claimed.lost == 0 => Some(claimed.lease),
            _ => None,
        };
        self.unsynced.lock().extend(answers.iter().filter_map(first).map(|lease| (scope.clone(), lease)));
        answers
    }

    async fn complete(&self, scope: &Scope, batch: &[CompleteRequest]) -> Vec<Result<Completion, Error>> {
        self.store.complete(scope, batch).await
    }

    async fn renew(&self, scope: &Scope, batch: &[RenewRequest]) -> Vec<Result<Renewal, Error>> {
        // A later write of the key is synced, and with it what is before it in the log.
        let renewed = |lease: &Lease| batch.iter().any(|request| request.lease == *lease);
        self.unsynced.lock().retain(|(of, lease)| of != scope || !renewed(lease));
        self.store.renew(scope, batch).await
    }

    async fn fail(&self, scope: &Scope, batch: &[FailRequest]) -> Vec<Result<Failure, Error>> {
        self.store.fail(scope, batch).await
    }

    async fn bury(&self, scope: &Scope, batch: &[BuryRequest]) -> Vec<Result<Burial, Error>> {
        self.store.bury(scope, batch).await
    }

    async fn release(&self, scope: &Scope, batch: &[Lease]) -> Vec<Result<bool, Error>> {
        self.store.release(scope, batch).await
    }

    fn expiring(&self) -> Option<&dyn Expiring> {
        self.store.expiring()
    }
}

#[async_trait]
impl StoreAdmin for MemoryInbox {
    async fn redrive(&self, scope: &Scope, batch: &[RedriveRequest]) -> Vec<Result<Redrive, Error>> {
        self.store.redrive(scope, batch).await
    }

    async fn forget(&self, scope: &Scope, keys: &[Key]) -> Vec<Result<bool, Error>> {
        self.store.forget(scope, keys).await
    }

    async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<KeyRecord>, Error> {
        self.store.inspect(scope, key).await
    }

    async fn list(&self, scope: &Scope, query: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        self.store.list(scope, query).await
    }

    async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        self.store.stats(scope).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::store::{StoreHarness, Timing, TransactionalHarness};

    struct Harness(MemoryInbox);

    fn harness() -> Harness {
        tokio::time::pause();
        Harness(MemoryInbox::new(MemoryStore::new()))
    }

    #[async_trait]
    impl StoreHarness for Harness {
        type Store = MemoryInbox;

        async fn store(&self) -> MemoryInbox {
            self.0.clone()
        }

        async fn advance(&self, by: Duration) {
            tokio::time::advance(by).await;
        }

        fn timing(&self) -> Timing {
            Timing::VIRTUAL
        }
    }

    #[async_trait]
    impl TransactionalHarness for Harness {
        async fn write_effect(&self, tx: &mut MemoryTransaction, effect: &str) {
            tx.effect(effect);
        }

        async fn effects(&self) -> Vec<String> {
            self.0.effects()
        }
    }

    crate::transactional_store_conformance!(harness());
    crate::position_store_conformance!(harness());
    crate::shared_transaction_conformance!(harness());
}
