//! Store and broker as the workers see them, with the witness looking on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use onceward::adapter::{
    Acker, Capabilities, Consumer, Delivery, FlowControl, Notice, Settled, Settlement, Tag,
};
use onceward::pipeline::config::Ordering;
use onceward::store::{
    Advice, Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, Commit, CompleteRequest, Completion,
    Expiring, FailRequest, Failure, KeyRecord, KeyState, KeyStats, Lease, ListQuery, Redrive, RedriveRequest,
    RenewRequest, Renewal, SharedCommit, StoreAdmin, StoreCapabilities,
};
use onceward::testing::{MemoryBroker, MemoryConsumer, MemoryInbox, MemoryPublisher, MemoryTransaction};
use onceward::{Error, Key, Scope, Store, TransactionalStore};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::bugs::{Bug, Planted};
use crate::witness::Witness;

type Answers<T> = Vec<Result<T, Error>>;

/// A worker's view of the store.
#[derive(Clone)]
pub(crate) struct WatchedStore {
    pub(crate) inner: Planted,
    pub(crate) witness: Witness,
    pub(crate) worker: u64,
}

impl WatchedStore {
    fn note<T: std::fmt::Debug>(&self, what: &str, keys: impl Iterator<Item = Key>, answers: &Answers<T>) {
        for (key, answer) in keys.zip(answers) {
            self.witness.trace(self.worker, what, (key, answer));
        }
    }

    fn claimed(&self, terms: &ClaimTerms, batch: &[ClaimRequest], answers: Answers<Claim>) -> Answers<Claim> {
        for (request, answer) in batch.iter().zip(&answers) {
            match answer {
                Ok(Claim::Claimed(claimed)) => {
                    self.witness.claimed(self.worker, request.key, claimed.lease.fence, claimed.lease_left);
                }
                Ok(Claim::Exhausted(exhausted)) => {
                    self.witness.claimed(self.worker, request.key, exhausted.lease.fence, terms.lease);
                }
                _ => {}
            }
        }
        self.note("claim", batch.iter().map(|request| request.key), &answers);
        answers
    }
}

#[async_trait]
impl Store for WatchedStore {
    fn capabilities(&self) -> StoreCapabilities {
        self.inner.inbox.capabilities()
    }

    async fn check(&self) -> Result<Vec<Advice>, Error> {
        Ok(Vec::new())
    }

    async fn claim(&self, scope: &Scope, terms: &ClaimTerms, batch: &[ClaimRequest]) -> Answers<Claim> {
        let for_commit = self.inner.bug == Some(Bug::SyncsNoClaim);
        self.claimed(terms, batch, self.inner.claim(scope, terms, batch, for_commit).await)
    }

    async fn claim_for_commit(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Answers<Claim> {
        self.claimed(terms, batch, self.inner.claim(scope, terms, batch, true).await)
    }

    async fn complete(&self, scope: &Scope, batch: &[CompleteRequest]) -> Answers<Completion> {
        let answers = self.inner.complete(scope, batch).await;
        batch.iter().for_each(|request| self.witness.let_go(request.lease.key, request.lease.fence));
        self.note("complete", batch.iter().map(|request| request.lease.key), &answers);
        answers
    }

    async fn renew(&self, scope: &Scope, batch: &[RenewRequest]) -> Answers<Renewal> {
        let answers = self.inner.renew(scope, batch).await;
        for (request, answer) in batch.iter().zip(&answers) {
            if matches!(answer, Ok(Renewal::Renewed)) {
                self.witness.renewed(request.lease.key, request.lease.fence, request.lease_for);
            }
        }
        self.note("renew", batch.iter().map(|request| request.lease.key), &answers);
        answers
    }

    async fn fail(&self, scope: &Scope, batch: &[FailRequest]) -> Answers<Failure> {
        let answers = self.inner.fail(scope, batch).await;
        for request in batch.iter().filter(|request| request.terminal.is_none()) {
            self.witness.let_go(request.lease.key, request.lease.fence);
        }
        self.note("fail", batch.iter().map(|request| request.lease.key), &answers);
        answers
    }

    async fn bury(&self, scope: &Scope, batch: &[BuryRequest]) -> Answers<Burial> {
        let answers = self.inner.inbox.bury(scope, batch).await;
        batch.iter().for_each(|request| self.witness.let_go(request.lease.key, request.lease.fence));
        self.note("bury", batch.iter().map(|request| request.lease.key), &answers);
        answers
    }

    async fn release(&self, scope: &Scope, batch: &[Lease]) -> Answers<bool> {
        let answers = self.inner.inbox.release(scope, batch).await;
        batch.iter().for_each(|lease| self.witness.let_go(lease.key, lease.fence));
        self.note("release", batch.iter().map(|lease| lease.key), &answers);
        answers
    }

    fn expiring(&self) -> Option<&dyn Expiring> {
        self.inner.inbox.expiring()
    }
}

#[async_trait]
impl StoreAdmin for WatchedStore {
    async fn redrive(&self, scope: &Scope, batch: &[RedriveRequest]) -> Answers<Redrive> {
        self.inner.inbox.redrive(scope, batch).await
    }

    async fn forget(&self, scope: &Scope, keys: &[Key]) -> Answers<bool> {
        self.inner.inbox.forget(scope, keys).await
    }

    async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<KeyRecord>, Error> {
        self.inner.inbox.inspect(scope, key).await
    }

    async fn list(&self, scope: &Scope, query: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        self.inner.inbox.list(scope, query).await
    }

    async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        self.inner.inbox.stats(scope).await
    }
}

#[async_trait]
impl TransactionalStore for WatchedStore {
    type Conn = MemoryTransaction;
    type Tx<'c> = &'c mut MemoryTransaction;

    async fn begin(&self) -> Result<MemoryTransaction, Error> {
        self.inner.inbox.begin().await
    }

    fn lend<'c>(&self, conn: &'c mut MemoryTransaction) -> &'c mut MemoryTransaction {
        conn
    }

    async fn commit(
        &self,
        conn: MemoryTransaction,
        scope: &Scope,
        request: &CompleteRequest,
    ) -> Result<Commit, Error> {
        let answer = self.inner.inbox.commit(conn, scope, request).await;
        self.witness.let_go(request.lease.key, request.lease.fence);
        self.witness.trace(self.worker, "commit", (request.lease.key, &answer));
        answer
    }

    async fn rollback(&self, _conn: MemoryTransaction) {}

    fn shares_transactions(&self) -> bool {
        true
    }

    async fn begin_shared(&self) -> Result<MemoryTransaction, Error> {
        self.inner.inbox.begin_shared().await
    }

    async fn keep(&self, conn: &mut MemoryTransaction) -> Result<(), Error> {
        self.inner.inbox.keep(conn).await
    }

    async fn undo(&self, conn: &mut MemoryTransaction) -> Result<(), Error> {
        self.inner.undo(conn).await
    }

    async fn commit_shared(
        &self,
        conn: MemoryTransaction,
        scope: &Scope,
        requests: &[CompleteRequest],
    ) -> Result<SharedCommit, Error> {
        let answer = self.inner.inbox.commit_shared(conn, scope, requests).await;
        for request in requests {
            // After a rollback each runs once more, under the claim that it has.
            if !matches!(answer, Ok(SharedCommit::RolledBack)) {
                self.witness.let_go(request.lease.key, request.lease.fence);
            }
            self.witness.trace(self.worker, "commit shared", (request.lease.key, &answer));
        }
        answer
    }
}

/// What lets the acker check a settlement.
pub(crate) struct Books {
    pub(crate) witness: Witness,
    pub(crate) worker: u64,
    pub(crate) scope: Scope,
    pub(crate) inbox: MemoryInbox,
    pub(crate) letters: MemoryPublisher,
    pub(crate) key_of: Box<dyn Fn(&str) -> Key + Send + Sync>,
    pub(crate) ids: Mutex<HashMap<Tag, String>>,
    pub(crate) lanes: Lanes,
}

/// The deliveries of a worker that are not settled, by their lane.
#[derive(Default)]
pub(crate) struct Lanes {
    pub(crate) ordering: Ordering,
    open: Mutex<BTreeMap<String, BTreeSet<Tag>>>,
}

impl Lanes {
    pub(crate) fn new(ordering: Ordering) -> Self {
        Self { ordering, open: Mutex::default() }
    }

    fn received(&self, delivery: &Delivery) {
        let message = &delivery.message;
        let lane = match self.ordering {
            Ordering::Partition => message.position().map(|position| position.partition.to_string()),
            Ordering::BrokerKey => message.order_key().map(|key| format!("{key:?}")),
            _ => None,
        };
        if let Some(lane) = lane {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.entry(lane).or_default().insert(delivery.tag);
        }
    }

    /// Those before it in its lane that are not settled.
    fn settle(&self, tag: Tag) -> Vec<Tag> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lane) = open.values_mut().find(|lane| lane.contains(&tag)) else { return Vec::new() };
        lane.remove(&tag);
        lane.range(..tag).filter(|before| before.epoch == tag.epoch).copied().collect()
    }
}

/// A worker's view of the broker. Its acker checks I6: what is acked is completed or dead-lettered.
pub(crate) struct WatchedConsumer {
    pub(crate) inner: MemoryConsumer,
    pub(crate) broker: MemoryBroker,
    pub(crate) books: Arc<Books>,
    pub(crate) bug: Option<Bug>,
}

#[async_trait]
impl Consumer for WatchedConsumer {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(WatchedAcker { broker: self.broker.clone(), books: Arc::clone(&self.books) })
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        let received = self.inner.receive().await?;
        let mut tags = Vec::new();
        for delivery in received.iter().flatten() {
            let id = String::from_utf8_lossy(delivery.message.payload()).into_owned();
            self.books.witness.trace(self.books.worker, "received", (&id, delivery.tag));
            self.books.ids.lock().unwrap_or_else(PoisonError::into_inner).insert(delivery.tag, id);
            self.books.lanes.received(delivery);
            tags.push((delivery.tag, Settlement::Ack));
        }
        if self.bug == Some(Bug::AcksOnReceive) {
            self.acker().settle(&tags).await;
        }
        Ok(received)
    }

    async fn is_idle(&mut self) -> Option<bool> {
        self.inner.is_idle().await
    }

    fn flow(&self) -> Option<Arc<dyn FlowControl>> {
        self.inner.flow()
    }

    fn notices(&mut self) -> Option<UnboundedReceiver<Notice>> {
        self.inner.notices().filter(|_| self.bug != Some(Bug::HidesLeaving))
    }

    async fn close(&mut self) -> Result<(), Error> {
        self.inner.close().await
    }
}

struct WatchedAcker {
    broker: MemoryBroker,
    books: Arc<Books>,
}

#[async_trait]
impl Acker for WatchedAcker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Answers<Settled> {
        for (tag, settlement) in batch {
            let id = self.books.ids.lock().unwrap_or_else(PoisonError::into_inner).get(tag).cloned();
            let Some(id) = id else {
                self.books.witness.violated(format!("{tag:?} was settled and never received"));
                continue;
            };
            self.books.witness.trace(self.books.worker, "settles", (&id, settlement));
            let before = self.books.lanes.settle(*tag);
            if *settlement == Settlement::Ack && self.books.passes_any(&before).await {
                self.books.witness.violated(format!("I4: {id} was acked before one ahead of it in its lane"));
            }
            if *settlement == Settlement::Ack && !self.books.may_ack(&id).await {
                self.books.witness.violated(format!("I6: {id} was acked and is neither completed nor dead"));
            }
        }
        self.broker.settle(batch).await
    }

    async fn extend(&self, tags: &[Tag]) -> Answers<Settled> {
        self.broker.extend(tags).await
    }
}

impl Books {
    /// True if one of these must be settled first. A message whose dead letter is not confirmed may be passed: it has left its lane.
    /// Its letter may have been confirmed since, by itself or by a copy, so that its key is dead by now.
    async fn passes_any(&self, before: &[Tag]) -> bool {
        for tag in before {
            let id = self.ids.lock().unwrap_or_else(PoisonError::into_inner).get(tag).cloned();
            let Some(id) = id else { continue };
            let record = self.inbox.inspect(&self.scope, &(self.key_of)(&id)).await.ok().flatten();
            if !record.is_some_and(|record| matches!(record.state, KeyState::Terminal | KeyState::Dead)) {
                return true;
            }
        }
        false
    }

    async fn may_ack(&self, id: &str) -> bool {
        let record = self.inbox.inspect(&self.scope, &(self.key_of)(id)).await.ok().flatten();
        match record.map(|record| record.state) {
            Some(KeyState::Completed | KeyState::Dead) => true,
            _ => self.letters.sent().iter().any(|letter| letter.payload == id.as_bytes()),
        }
    }
}
