//! The parts of the store that an operator and the cleaner use.

use std::sync::PoisonError;

use async_trait::async_trait;
use onceward::store::transition::Record;
use onceward::store::*;
use onceward::{Error, Key, Scope};

use super::map_store::MapStore;

impl MapStore {
    /// The unexpired records of a scope, in key order.
    fn live(&self, scope: &Scope) -> Vec<KeyRecord> {
        let records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = records.now();
        let table = records.scopes.get(scope).into_iter().flatten();
        table.filter_map(|(key, record)| record.view(*key, at)).collect()
    }
}

#[async_trait]
impl StoreAdmin for MapStore {
    async fn redrive(&self, scope: &Scope, batch: &[RedriveRequest]) -> Vec<Result<Redrive, Error>> {
        self.apply(scope, batch, |one| one.key, Record::redrive)
    }

    async fn forget(&self, scope: &Scope, keys: &[Key]) -> Vec<Result<bool, Error>> {
        self.apply(scope, keys, |key| *key, |record, at, _| record.forget(at))
    }

    async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<KeyRecord>, Error> {
        Ok(self.live(scope).into_iter().find(|record| record.key == *key))
    }

    async fn list(&self, scope: &Scope, query: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        let wanted = |record: &KeyRecord| {
            query.after.is_none_or(|after| record.key > after)
                && query.state.is_none_or(|state| record.state == state)
        };
        Ok(self.live(scope).into_iter().filter(wanted).take(query.limit as usize).collect())
    }

    async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        let mut stats = KeyStats::default();
        for record in self.live(scope) {
            stats.set(record.state, stats.get(record.state) + 1);
        }
        Ok(stats)
    }
}

#[async_trait]
impl Expiring for MapStore {
    async fn purge(&self, limit: u32) -> Result<u64, Error> {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = records.now();
        let (mut floor, mut left) = (at.fence_floor, limit);
        for table in records.scopes.values_mut() {
            table.retain(|_, record| {
                let stays = left == 0 || !record.is_expired(at.now);
                if !stays {
                    (floor, left) = (floor.max(record.fence), left - 1);
                }
                stays
            });
        }
        records.fence_floor = floor;
        Ok(u64::from(limit - left))
    }

    fn purge_interval(&self) -> std::time::Duration {
        std::time::Duration::from_secs(10)
    }
}
