//! Positions of a [`MemoryInbox`], and the keys that its transactions mark.

use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::memory_inbox::{MemoryInbox, MemoryTransaction};
use crate::error::{Error, ErrorKind};
use crate::key::{Key, Scope};
use crate::store::{
    Commit, CompleteRequest, KeyMark, LogPartition, MarkRequest, MarkedCommit, MarkedKey, Ownership,
    PositionStore,
};

/// How far partitions have been processed, and which keys are marked in open transactions.
#[derive(Clone, Debug, Default)]
pub(super) struct Positions {
    partitions: Arc<Mutex<HashMap<(Scope, LogPartition), OwnedPosition>>>,
    held: Arc<HeldPartitions>,
}

#[derive(Debug, Default)]
struct OwnedPosition {
    epoch: u64,
    watermark: u64,
    done: BTreeSet<u64>,
}

impl OwnedPosition {
    /// Notes offsets, unless another owner has the partition or one of them was noted before.
    fn note(&mut self, mark: &MarkRequest) -> MarkedCommit {
        if self.epoch != mark.epoch {
            return MarkedCommit::NotOwner;
        }
        if mark.offsets.iter().any(|offset| *offset < self.watermark || self.done.contains(offset)) {
            return MarkedCommit::Processed;
        }
        self.done.extend(&mark.offsets);
        self.watermark = self.watermark.max(mark.floor);
        self.done.retain(|offset| *offset >= self.watermark);
        while self.done.remove(&self.watermark) {
            self.watermark += 1;
        }
        MarkedCommit::Committed
    }
}

#[derive(Debug, Default)]
struct HeldPartitions {
    keys: Mutex<HashSet<(Scope, Key)>>,
    freed: Notify,
}

impl HeldPartitions {
    fn keys(&self) -> MutexGuard<'_, HashSet<(Scope, Key)>> {
        self.keys.lock()
    }

    /// Takes all of `wanted`, or none.
    fn take(&self, wanted: &[(Scope, Key)]) -> bool {
        let mut keys = self.keys();
        if wanted.iter().any(|own| keys.contains(own)) {
            return false;
        }
        keys.extend(wanted.iter().cloned());
        true
    }
}

/// The keys that a transaction has marked; they are others' again when it ends.
#[derive(Debug, Default)]
pub(super) struct Marked {
    held: Arc<HeldPartitions>,
    keys: Vec<(Scope, Key)>,
    fresh: Vec<KeyMark>,
    ttl: Duration,
}

impl Drop for Marked {
    fn drop(&mut self) {
        let mut held = self.held.keys();
        for own in &self.keys {
            held.remove(own);
        }
        drop(held);
        self.held.freed.notify_waiters();
    }
}

#[async_trait]
impl PositionStore for MemoryInbox {
    async fn own(&self, scope: &Scope, partition: &LogPartition) -> Result<Ownership, Error> {
        let mut partitions = self.positions.partitions.lock();
        let position = partitions.entry((scope.clone(), partition.clone())).or_default();
        position.epoch += 1;
        let done: Vec<_> = position.done.iter().copied().collect();
        let nothing = position.watermark == 0 && done.is_empty();
        let watermark = (!nothing).then_some(position.watermark);
        Ok(Ownership { partition: partition.clone(), epoch: position.epoch, watermark, done })
    }

    async fn mark_keys(
        &self,
        mut conn: MemoryTransaction,
        scope: &Scope,
        ttl: Duration,
        keys: &[KeyMark],
    ) -> Result<(MemoryTransaction, Vec<MarkedKey>), Error> {
        let held = Arc::clone(&self.positions.held);
        let wanted: Vec<_> = keys.iter().map(|mark| (scope.clone(), mark.key)).collect();
        loop {
            let freed = held.freed.notified();
            if held.take(&wanted) {
                break;
            }
            freed.await;
        }
        let found = self.store.marked(scope, ttl, keys);
        let is_fresh = |(mark, found): (&KeyMark, &MarkedKey)| (*found == MarkedKey::Fresh).then_some(*mark);
        let fresh = keys.iter().zip(&found).filter_map(is_fresh).collect();
        conn.marked = Marked { held, keys: wanted, fresh, ttl };
        Ok((conn, found))
    }

    async fn commit_at(
        &self,
        mut conn: MemoryTransaction,
        scope: &Scope,
        mark: &MarkRequest,
        complete: Option<&CompleteRequest>,
    ) -> Result<MarkedCommit, Error> {
        if complete.is_some() {
            let what =
                "the store in memory takes a claim's completion with commit, and positions with commit_at";
            return Err(Error::new(ErrorKind::Unsupported, "commit the effect and its position", what));
        }
        let mut noted = MarkedCommit::Fenced;
        let marked = std::mem::take(&mut conn.marked);
        let committed = self.store.commit_marks(scope, marked.ttl, &marked.fresh, || {
            let mut partitions = self.positions.partitions.lock();
            let position = partitions.get_mut(&(scope.clone(), mark.partition.clone()));
            noted = position.map_or(MarkedCommit::NotOwner, |position| position.note(mark));
            if noted == MarkedCommit::Committed {
                self.happen(&mut conn);
            }
            noted == MarkedCommit::Committed
        });
        debug_assert_eq!(committed == Commit::Committed, noted == MarkedCommit::Committed);
        Ok(noted)
    }
}
