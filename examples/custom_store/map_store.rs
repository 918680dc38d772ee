//! A store that keeps records in sorted maps behind one lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use onceward::store::transition::{Moment, Record, Step, micros};
use onceward::store::*;
use onceward::{Error, Key, Scope};
use tokio::time::Instant;

/// Clones share the records.
#[derive(Clone)]
pub struct MapStore(pub(super) Arc<Mutex<Records>>);

pub(super) struct Records {
    pub(super) scopes: HashMap<Scope, BTreeMap<Key, Record>>,
    /// The largest fence of a removed record: no later claim may get a smaller one.
    pub(super) fence_floor: u64,
    clock_at_start: u64,
    started_at: Instant,
}

impl Records {
    pub(super) fn now(&self) -> Moment {
        let now = self.clock_at_start + micros(self.started_at.elapsed());
        Moment { now, fence_floor: self.fence_floor }
    }
}

impl MapStore {
    pub fn new() -> Self {
        let clock_at_start = micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let (scopes, started_at) = (HashMap::new(), Instant::now());
        Self(Arc::new(Mutex::new(Records { scopes, fence_floor: 0, clock_at_start, started_at })))
    }

    /// Applies one step to each record of a batch: read, decide, write. A database does this in one transaction.
    pub(super) fn apply<I, T>(
        &self,
        scope: &Scope,
        batch: &[I],
        key: impl Fn(&I) -> Key,
        step: impl Fn(&mut Record, Moment, &I) -> Step<T>,
    ) -> Vec<Result<T, Error>> {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = records.now();
        let mut floor = at.fence_floor;
        let table = records.scopes.entry(scope.clone()).or_default();
        let one = |item: &I| {
            let key = key(item);
            let mut record = table.get(&key).cloned().unwrap_or(Record::nothing());
            let fence = record.fence;
            let Step { answer, changed } = step(&mut record, at, item);
            if record.fence < fence {
                floor = floor.max(fence);
            }
            match changed {
                true if record.is_nothing() => drop(table.remove(&key)),
                true => drop(table.insert(key, record)),
                false => {}
            }
            Ok(answer)
        };
        let answers = batch.iter().map(one).collect();
        records.fence_floor = floor;
        answers
    }
}

#[async_trait]
impl Store for MapStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new("map")
    }

    async fn check(&self) -> Result<Vec<Advice>, Error> {
        Ok(vec![Advice::warning("store-in-memory", "the keys are forgotten when the process ends")])
    }

    async fn claim(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        self.apply(scope, batch, |one| one.key, |record, at, one| record.claim(at, terms, one))
    }

    async fn complete(&self, scope: &Scope, batch: &[CompleteRequest]) -> Vec<Result<Completion, Error>> {
        self.apply(scope, batch, |one| one.lease.key, Record::complete)
    }

    async fn renew(&self, scope: &Scope, batch: &[RenewRequest]) -> Vec<Result<Renewal, Error>> {
        self.apply(scope, batch, |one| one.lease.key, Record::renew)
    }

    async fn fail(&self, scope: &Scope, batch: &[FailRequest]) -> Vec<Result<Failure, Error>> {
        self.apply(scope, batch, |one| one.lease.key, Record::fail)
    }

    async fn bury(&self, scope: &Scope, batch: &[BuryRequest]) -> Vec<Result<Burial, Error>> {
        self.apply(scope, batch, |one| one.lease.key, Record::bury)
    }

    async fn release(&self, scope: &Scope, batch: &[Lease]) -> Vec<Result<bool, Error>> {
        self.apply(scope, batch, |one| one.key, Record::release)
    }

    fn expiring(&self) -> Option<&dyn Expiring> {
        Some(self)
    }
}
