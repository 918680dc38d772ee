//! A store with injected faults: [`FaultyStore`].

use std::fmt::Debug;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::faults::{FaultPlan, Faults, Operation};
use super::process::Process;
use crate::error::{Error, ErrorKind};
use crate::key::{Key, Scope};
use crate::store::{
    Advice, Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, Commit, CompleteRequest, Completion,
    Expiring, FailRequest, Failure, KeyRecord, KeyStats, Lease, ListQuery, Redrive, RedriveRequest,
    RenewRequest, Renewal, SharedCommit, Store, StoreAdmin, StoreCapabilities, TransactionalStore,
};

/// Wraps a store and lets calls fail, hang, come late or lose their reply, by a seed or as a test asks: see
/// [`FaultPlan`], which it derefs to.
///
/// A clone is another handle to the same faults. Two workers that see different faults of one store are two
/// `FaultyStore`s around clones of it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use onceward::testing::{Fault, FaultyStore, Operation};
/// use onceward::adapter::StoreAdmin;
/// use onceward::{MemoryStore, Scope};
/// let store = FaultyStore::new(MemoryStore::new());
/// store.next(Operation::Stats, Fault::Refused);
/// let scope = Scope::parse("billing").unwrap();
/// assert!(store.stats(&scope).await.unwrap_err().is_retryable());
/// assert!(store.stats(&scope).await.is_ok());
/// assert_eq!(store.calls(Operation::Stats), 2);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FaultyStore<S> {
    inner: S,
    plan: Arc<FaultPlan>,
}

impl<S> FaultyStore<S> {
    /// Around `inner`, without a fault so far.
    pub fn new(inner: S) -> Self {
        Self::with(inner, Faults::NONE)
    }

    /// Around `inner`, with these chances.
    pub fn with(inner: S, faults: Faults) -> Self {
        Self::inside(inner, faults, &Process::new())
    }

    /// Around `inner`, with these chances, for calls from `process`.
    pub fn inside(inner: S, faults: Faults, process: &Process) -> Self {
        Self { inner, plan: Arc::new(FaultPlan::new(faults, process)) }
    }

    /// The store without its faults.
    pub fn inner(&self) -> &S {
        &self.inner
    }
}

impl<S> Deref for FaultyStore<S> {
    type Target = FaultPlan;

    fn deref(&self) -> &FaultPlan {
        &self.plan
    }
}

#[allow(clippy::ptr_arg)] // it must fit what the plan passes on: the very answers
fn printed<T: Debug>(answers: &Vec<Result<T, Error>>) -> Vec<String> {
    answers.iter().map(|answer| format!("{answer:?}")).collect()
}

/// A batch without the items of keys that fail, which are answered apart.
struct Sound<I> {
    items: Vec<I>,
    keys: Vec<Key>,
    failing: Vec<Option<ErrorKind>>,
}

impl<S: Store> FaultyStore<S> {
    fn sound<I: Clone>(&self, batch: &[I], key: impl Fn(&I) -> Key) -> Sound<I> {
        let failing: Vec<_> = batch.iter().map(|item| self.plan.fails_key(&key(item))).collect();
        let items: Vec<I> = batch
            .iter()
            .zip(&failing)
            .filter(|(_, failing)| failing.is_none())
            .map(|(item, _)| item.clone())
            .collect();
        Sound { keys: items.iter().map(key).collect(), items, failing }
    }

    async fn batch<I, T: Debug>(
        &self,
        operation: Operation,
        sound: &Sound<I>,
        apply: impl Future<Output = Vec<Result<T, Error>>>,
    ) -> Vec<Result<T, Error>> {
        let answers = self.plan.call(operation, || sound.keys.clone(), printed, apply).await;
        let mut answers = match answers {
            Ok(answers) => answers.into_iter(),
            Err(error) => sound.keys.iter().map(|_| Err(error.clone())).collect::<Vec<_>>().into_iter(),
        };
        let fails = |kind| Error::new(kind, "reach the record of a key", "a seeded fault");
        sound
            .failing
            .iter()
            .filter_map(|failing| match failing {
                Some(kind) => Some(Err(fails(*kind))),
                None => answers.next(),
            })
            .collect()
    }

    async fn claimed(
        &self,
        terms: &ClaimTerms,
        sound: &Sound<ClaimRequest>,
        claim: impl Future<Output = Vec<Result<Claim, Error>>>,
    ) -> Vec<Result<Claim, Error>> {
        let mut answers = self.batch(Operation::Claim, sound, claim).await;
        if answers.iter().all(Result::is_ok) && self.plan.take_own_call() {
            for answer in &mut answers {
                if matches!(answer, Ok(Claim::Claimed(_))) {
                    *answer = Ok(Claim::InProgress { retry_in: terms.lease });
                }
            }
        }
        answers
    }

    async fn single<T>(
        &self,
        operation: Operation,
        apply: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.plan.call(operation, Vec::new, |_| Vec::new(), apply).await?
    }
}

#[async_trait]
impl<S: Store> Store for FaultyStore<S> {
    fn capabilities(&self) -> StoreCapabilities {
        self.inner.capabilities()
    }

    async fn check(&self) -> Result<Vec<Advice>, Error> {
        self.single(Operation::Check, self.inner.check()).await
    }

    async fn claim(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        let sound = self.sound(batch, |item| item.key);
        self.claimed(terms, &sound, self.inner.claim(scope, terms, &sound.items)).await
    }

    async fn claim_for_commit(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        let sound = self.sound(batch, |item| item.key);
        self.claimed(terms, &sound, self.inner.claim_for_commit(scope, terms, &sound.items)).await
    }

    async fn complete(&self, scope: &Scope, batch: &[CompleteRequest]) -> Vec<Result<Completion, Error>> {
        let sound = self.sound(batch, |item| item.lease.key);
        self.batch(Operation::Complete, &sound, self.inner.complete(scope, &sound.items)).await
    }

    async fn renew(&self, scope: &Scope, batch: &[RenewRequest]) -> Vec<Result<Renewal, Error>> {
        let sound = self.sound(batch, |item| item.lease.key);
        self.batch(Operation::Renew, &sound, self.inner.renew(scope, &sound.items)).await
    }

    async fn fail(&self, scope: &Scope, batch: &[FailRequest]) -> Vec<Result<Failure, Error>> {
        let sound = self.sound(batch, |item| item.lease.key);
        self.batch(Operation::Fail, &sound, self.inner.fail(scope, &sound.items)).await
    }

    async fn bury(&self, scope: &Scope, batch: &[BuryRequest]) -> Vec<Result<Burial, Error>> {
        let sound = self.sound(batch, |item| item.lease.key);
        self.batch(Operation::Bury, &sound, self.inner.bury(scope, &sound.items)).await
    }

    async fn release(&self, scope: &Scope, batch: &[Lease]) -> Vec<Result<bool, Error>> {
        let sound = self.sound(batch, |item| item.key);
        self.batch(Operation::Release, &sound, self.inner.release(scope, &sound.items)).await
    }

    fn expiring(&self) -> Option<&dyn Expiring> {
        self.inner.expiring().map(|_| self as &dyn Expiring)
    }
}

#[async_trait]
impl<S: StoreAdmin> StoreAdmin for FaultyStore<S> {
    async fn redrive(&self, scope: &Scope, batch: &[RedriveRequest]) -> Vec<Result<Redrive, Error>> {
        let sound = self.sound(batch, |item| item.key);
        self.batch(Operation::Redrive, &sound, self.inner.redrive(scope, &sound.items)).await
    }

    async fn forget(&self, scope: &Scope, keys: &[Key]) -> Vec<Result<bool, Error>> {
        let sound = self.sound(keys, |key| *key);
        self.batch(Operation::Forget, &sound, self.inner.forget(scope, &sound.items)).await
    }

    async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<KeyRecord>, Error> {
        self.single(Operation::Inspect, self.inner.inspect(scope, key)).await
    }

    async fn list(&self, scope: &Scope, query: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        self.single(Operation::List, self.inner.list(scope, query)).await
    }

    async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        self.single(Operation::Stats, self.inner.stats(scope)).await
    }
}

#[async_trait]
impl<S: Store> Expiring for FaultyStore<S> {
    async fn purge(&self, limit: u32) -> Result<u64, Error> {
        let purge = async {
            match self.inner.expiring() {
                Some(expiring) => expiring.purge(limit).await,
                None => Ok(0),
            }
        };
        self.single(Operation::Purge, purge).await
    }

    async fn expiry_lag(&self) -> Result<Duration, Error> {
        match self.inner.expiring() {
            Some(expiring) => expiring.expiry_lag().await,
            None => Ok(Duration::ZERO),
        }
    }

    fn purge_interval(&self) -> Duration {
        self.inner.expiring().map_or(Duration::MAX, Expiring::purge_interval)
    }
}

#[async_trait]
impl<S: TransactionalStore> TransactionalStore for FaultyStore<S> {
    type Conn = S::Conn;
    type Tx<'c> = S::Tx<'c>;

    fn max_transactions(&self) -> Option<usize> {
        self.inner.max_transactions()
    }

    async fn begin(&self) -> Result<S::Conn, Error> {
        self.single(Operation::Begin, self.inner.begin()).await
    }

    fn lend<'c>(&self, conn: &'c mut S::Conn) -> S::Tx<'c> {
        self.inner.lend(conn)
    }

    async fn commit(&self, conn: S::Conn, scope: &Scope, request: &CompleteRequest) -> Result<Commit, Error> {
        let keys = || vec![request.lease.key];
        let answers = |answer: &Result<Commit, Error>| vec![format!("{answer:?}")];
        self.plan.call(Operation::Commit, keys, answers, self.inner.commit(conn, scope, request)).await?
    }

    async fn rollback(&self, conn: S::Conn) {
        // A transaction that is not rolled back in so many words is rolled back when its connection is dropped.
        let _ =
            self.plan.call(Operation::Rollback, Vec::new, |()| Vec::new(), self.inner.rollback(conn)).await;
    }

    fn handler_error(&self, error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
        self.inner.handler_error(error)
    }

    fn shares_transactions(&self) -> bool {
        self.inner.shares_transactions()
    }

    async fn begin_shared(&self) -> Result<S::Conn, Error> {
        self.single(Operation::Begin, self.inner.begin_shared()).await
    }

    async fn keep(&self, conn: &mut S::Conn) -> Result<(), Error> {
        self.single(Operation::Keep, self.inner.keep(conn)).await
    }

    async fn undo(&self, conn: &mut S::Conn) -> Result<(), Error> {
        self.single(Operation::Undo, self.inner.undo(conn)).await
    }

    async fn commit_shared(
        &self,
        conn: S::Conn,
        scope: &Scope,
        requests: &[CompleteRequest],
    ) -> Result<SharedCommit, Error> {
        let keys = || requests.iter().map(|request| request.lease.key).collect();
        let answers = |answer: &Result<SharedCommit, Error>| vec![format!("{answer:?}"); requests.len()];
        let commit = self.inner.commit_shared(conn, scope, requests);
        self.plan.call(Operation::Commit, keys, answers, commit).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Entropy, MemoryStore};
    use crate::testing::Fault;

    fn scope() -> Scope {
        Scope::parse("billing").unwrap()
    }

    fn request(store_key: u8, entropy: &mut Entropy) -> ClaimRequest {
        let key = Key::from_bytes([store_key; 16]);
        ClaimRequest { key, owner: entropy.token(), fingerprint: None, generation: 0 }
    }

    const TERMS: ClaimTerms =
        ClaimTerms { lease: Duration::from_secs(2), max_attempts: 3, ttl: Duration::from_secs(60) };

    #[tokio::test(start_paused = true)]
    async fn a_refused_call_applies_nothing_and_a_lost_reply_hides_what_was_applied() {
        let store = FaultyStore::new(MemoryStore::new());
        let request = request(1, &mut Entropy::seeded(1));
        store.next(Operation::Claim, Fault::Refused);
        store.next(Operation::Claim, Fault::ReplyLost);
        let refused = store.claim(&scope(), &TERMS, &[request]).await;
        assert_eq!(refused[0].as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(store.inner().inspect(&scope(), &request.key).await.unwrap(), None);
        let lost = store.claim(&scope(), &TERMS, &[request]).await;
        assert_eq!(lost[0].as_ref().unwrap_err().kind(), ErrorKind::Timeout);
        assert!(store.inner().inspect(&scope(), &request.key).await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_corrupt_key_fails_alone_and_answers_stay_in_order() {
        let store = FaultyStore::new(MemoryStore::new());
        let mut entropy = Entropy::seeded(1);
        let batch = [1, 2, 3].map(|key| request(key, &mut entropy));
        store.corrupt(batch[1].key);
        store.record();
        let answers = store.claim(&scope(), &TERMS, &batch).await;
        assert_eq!(answers[1].as_ref().unwrap_err().kind(), ErrorKind::Corrupt);
        for index in [0, 2] {
            let Ok(Claim::Claimed(claimed)) = &answers[index] else { panic!("{answers:?}") };
            assert_eq!(claimed.lease.key, batch[index].key);
        }
        assert_eq!(store.recorded()[0].keys, [batch[0].key, batch[2].key]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_refuses_all_calls_also_those_under_way_until_it_ends() {
        let store = FaultyStore::new(MemoryStore::new());
        store.next(Operation::Stats, Fault::Late(Duration::from_secs(1)));
        let under_way = {
            let store = store.clone();
            tokio::spawn(async move { store.stats(&scope()).await })
        };
        tokio::time::sleep(Duration::from_millis(500)).await;
        store.go_down();
        assert!(under_way.await.unwrap().is_err());
        assert!(store.stats(&scope()).await.is_err());
        store.come_up();
        assert!(store.stats(&scope()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn seeded_faults_come_in_about_their_share_and_the_same_each_time() {
        let outcomes = async |seed| {
            let faults = Faults { refused: 0.2, reply_lost: 0.1, seed, ..Faults::NONE };
            let store = FaultyStore::with(MemoryStore::new(), faults);
            let mut outcomes = Vec::new();
            for _ in 0..1000 {
                outcomes.push(store.stats(&scope()).await.err().map(|error| error.kind()));
            }
            outcomes
        };
        let first = outcomes(7).await;
        assert_eq!(first, outcomes(7).await);
        assert_ne!(first, outcomes(8).await);
        let count = |kind| first.iter().filter(|outcome| **outcome == Some(kind)).count();
        assert!((150..250).contains(&count(ErrorKind::Unavailable)), "{}", count(ErrorKind::Unavailable));
        assert!((50..130).contains(&count(ErrorKind::Timeout)), "{}", count(ErrorKind::Timeout));
    }
}
