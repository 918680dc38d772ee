//! Positions up to which a log partition is processed, kept in the effect's own transaction: [`PositionStore`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{CompleteRequest, OwnerToken, TransactionalStore};
use crate::error::{Error, ErrorKind};
use crate::key::{Fingerprint, Key, Scope};

/// A partition of a log, as one group of consumers reads it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogPartition {
    /// The group.
    pub group: Arc<str>,
    /// The source in which the offsets count, as in [`Position::incarnation`](crate::Position): Kafka cluster and topic
    /// id.
    pub incarnation: Arc<str>,
    /// The partition.
    pub partition: u32,
}

/// That a partition is one owner's, and what had been processed when it became so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// The partition.
    pub partition: LogPartition,
    /// Larger than that of every earlier owner.
    pub epoch: u64,
    /// Every offset below has been processed or skipped; `None` if nothing was ever noted of the partition, and the
    /// broker's own position counts.
    pub watermark: Option<u64>,
    /// Offsets above the watermark that have been processed, in order.
    pub done: Vec<u64>,
}

impl Ownership {
    /// True if the record at `offset` had been processed when the partition was taken over: it is not handled again.
    pub fn is_done(&self, offset: u64) -> bool {
        self.watermark.is_some_and(|watermark| offset < watermark) || self.done.binary_search(&offset).is_ok()
    }

    /// Compares with `end`, the offset of the record that the log will get next.
    ///
    /// # Errors
    /// `Config` if more has been processed than the log holds: it was recreated, and its offsets count from the beginning
    /// again, so that new records would pass for processed ones.
    pub fn check_end(&self, end: u64) -> Result<(), Error> {
        let last = self.done.last().map_or(0, |last| last.saturating_add(1));
        let known = self.watermark.unwrap_or(0).max(last);
        if known <= end {
            return Ok(());
        }
        let LogPartition { group, partition, .. } = &self.partition;
        let what = format!(
            "group {group} has processed partition {partition} up to offset {known}, and the log ends at {end}: it was \
             recreated or truncated; if that is meant, use another group or remove the partition's processed offsets"
        );
        Err(Error::new(ErrorKind::Config, "go on from the processed offsets", what))
    }
}

/// Offsets whose effects are in a transaction that is to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkRequest {
    /// The partition.
    pub partition: LogPartition,
    /// The owner's epoch.
    pub epoch: u64,
    /// The offsets, distinct.
    pub offsets: Vec<u64>,
    /// Below it every record that the owner has got is processed, durably or by this transaction, or will never be. It lets the
    /// position pass offsets that no record has (compaction, control records, aborted transactions). 0 claims nothing.
    pub floor: u64,
}

/// A key that is to be completed by the transaction of its effect, without a claim before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyMark {
    /// The key.
    pub key: Key,
    /// Fresh for every transaction.
    pub owner: OwnerToken,
    /// The payload's fingerprint; `None` compares nothing.
    pub fingerprint: Option<Fingerprint>,
}

/// The state of a key that a transaction is to complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkedKey {
    /// The effect has not happened: it belongs into this transaction, whose commit completes the key.
    Fresh,
    /// The effect has happened.
    Completed,
    /// Its dead letter was published.
    Dead,
    /// Claimed, and its handler may be running. Nothing may be committed for it now.
    InProgress {
        /// The lease that is left.
        retry_in: Duration,
    },
    /// The key is known with another payload.
    Mismatch,
}

/// How a transaction with positions ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkedCommit {
    /// Effect and position are durable, and with them the completion, if one was asked for.
    Committed,
    /// One of the offsets had been processed before. Nothing was committed: not the effects of the others either, which
    /// are to be tried without it.
    Processed,
    /// The partition has another owner. Nothing was committed, and nothing of this owner's will be.
    NotOwner,
    /// The claim of the key was no longer held. Nothing was committed.
    Fenced,
}

/// A [`TransactionalStore`] that keeps positions as well: one committed effect per record, in constant space.
///
/// Every assignment of a partition raises its epoch, before the position is read. The last statement of every effect's
/// transaction notes the offset under the owner's epoch; under an older one it finds nothing to write, and all is rolled
/// back. So an owner that was paused commits nothing after another one has taken over, however far its handlers had got,
/// and the new one does not wait for it.
///
/// A producer's duplicates stand at other offsets: they need the key as well. Either it was claimed before, and
/// [`commit_at`](Self::commit_at) completes the claim, or the transaction begins with [`mark_keys`](Self::mark_keys), which
/// needs no claim: its rows are the guard, since of two transactions that write one of them only one can commit.
#[async_trait]
pub trait PositionStore: TransactionalStore {
    /// Makes the caller the owner, under a new epoch, and answers what had been processed until then. To be called on
    /// every assignment, before the first record is handled.
    ///
    /// # Errors
    /// [`Error`] if the store cannot: the partition must not be processed then. After a retryable one the epoch may have
    /// been raised, so earlier ownerships of the caller's have ended.
    ///
    /// # Cancel safety
    /// As after a retryable error.
    async fn own(&self, scope: &Scope, partition: &LogPartition) -> Result<Ownership, Error>;

    /// Completes keys within an open transaction, before their effects: no other connection sees it until the
    /// transaction commits, and never if it does not. Only effects of keys that are [`Fresh`](MarkedKey::Fresh) may
    /// follow in it. One answer for each key, in order; the keys are distinct.
    ///
    /// A transaction that marks a key which another one has marked waits for that one's end, and then knows the key, or has
    /// it. A key that a claim could take over is fresh here, too: a failed run, a claim whose lease is over.
    ///
    /// # Errors
    /// [`Error`] if the store cannot, or would have to wait for too long. The transaction is rolled back.
    ///
    /// # Cancel safety
    /// The transaction of a dropped call is rolled back.
    async fn mark_keys(
        &self,
        conn: Self::Conn,
        scope: &Scope,
        ttl: Duration,
        keys: &[KeyMark],
    ) -> Result<(Self::Conn, Vec<MarkedKey>), Error>;

    /// Notes the offsets, completes the key's claim if there is one, and commits, all or nothing.
    ///
    /// # Errors
    /// [`Error`]: after a retryable one the outcome is unknown; a repeated run answers
    /// [`Processed`](MarkedCommit::Processed) if it was committed.
    async fn commit_at(
        &self,
        conn: Self::Conn,
        scope: &Scope,
        mark: &MarkRequest,
        complete: Option<&CompleteRequest>,
    ) -> Result<MarkedCommit, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ownership(watermark: Option<u64>, done: &[u64]) -> Ownership {
        let partition = LogPartition { group: "g".into(), incarnation: "i".into(), partition: 3 };
        Ownership { partition, epoch: 1, watermark, done: done.to_vec() }
    }

    #[test]
    fn what_is_below_the_watermark_or_in_the_set_is_done() {
        let owned = ownership(Some(5), &[7, 9]);
        let done: Vec<_> = (0..12).filter(|offset| owned.is_done(*offset)).collect();
        assert_eq!(done, [0, 1, 2, 3, 4, 7, 9]);
        assert!(!ownership(None, &[]).is_done(0));
    }

    #[test]
    fn a_log_that_ends_before_what_was_processed_is_refused() {
        assert!(ownership(Some(5), &[7]).check_end(8).is_ok());
        for (owned, end) in [(ownership(Some(5), &[7]), 7), (ownership(Some(5), &[]), 4)] {
            let error = owned.check_end(end).unwrap_err();
            assert!(!error.is_retryable() && error.to_string().contains("recreated"), "{error}");
        }
    }
}
