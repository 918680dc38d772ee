//! The durable record of keys: the traits [`Store`], [`StoreAdmin`] and [`Expiring`].

mod audit;
mod claim;
pub mod memory;
mod position;
mod record;
mod shared;
mod stored_result;
mod token;
mod transactional;
pub mod transition;

use std::time::Duration;

use async_trait::async_trait;

pub use audit::{AuditEntry, AuditLog, AuditRecord};
pub use claim::{
    Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, Claimed, CompleteRequest, Completion, Exhausted,
    FailRequest, Failure, Lease, MAX_GENERATION, Reason, Redrive, RedriveRequest, RenewRequest, Renewal,
};
pub use memory::MemoryStore;
pub use position::{KeyMark, LogPartition, MarkRequest, MarkedCommit, MarkedKey, Ownership, PositionStore};
pub use record::{KeyRecord, KeyState, KeyStats, ListQuery};
pub use shared::SharedStore;
pub use stored_result::{StoredResult, TraceContext};
pub use token::{Entropy, OwnerToken};
pub use transactional::{Commit, SharedCommit, TransactionalStore};

use crate::error::Error;
use crate::key::{Key, Scope};

/// The guarantees that a store can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreCapabilities {
    /// The store's name, for logs and messages: `memory`, `sqlite`, `redis`, `postgres`.
    pub name: &'static str,
    /// Completions survive the death of the store's process.
    pub durable: bool,
    /// Several processes can share it.
    pub shared: bool,
}

impl StoreCapabilities {
    /// The capabilities of the store `name`: neither durable nor shared until said so.
    pub const fn new(name: &'static str) -> Self {
        Self { name, durable: false, shared: false }
    }

    /// Declares that completions survive the death of the store's process.
    #[must_use]
    pub const fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Declares that several processes can share the store.
    #[must_use]
    pub const fn shared(mut self) -> Self {
        self.shared = true;
        self
    }
}

/// One line of a start check: what was found and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// How bad it is.
    pub level: AdviceLevel,
    /// The kind of warning or error, a stable name such as `redis-no-append-only-file`; empty where all is well.
    pub code: &'static str,
    /// One sentence.
    pub text: String,
}

/// How bad a finding of a start check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdviceLevel {
    /// As it should be.
    Ok,
    /// It works, but a promise is weaker than it could be.
    Warning,
    /// It must be fixed before the program may run.
    Error,
}

impl Advice {
    /// All is well.
    pub fn ok(text: impl Into<String>) -> Self {
        Self { level: AdviceLevel::Ok, code: "", text: text.into() }
    }

    /// It works, but a promise is weaker than it could be. `code` names the kind of finding: lowercase words with hyphens, which
    /// stay the same from version to version.
    ///
    /// ```
    /// use onceward::store::{Advice, AdviceLevel};
    ///
    /// let advice = Advice::warning("shelf-unsorted", "the shelf is unsorted; sort it");
    /// assert_eq!((advice.level, advice.code), (AdviceLevel::Warning, "shelf-unsorted"));
    /// ```
    pub fn warning(code: &'static str, text: impl Into<String>) -> Self {
        Self { level: AdviceLevel::Warning, code, text: text.into() }
    }

    /// It must be fixed before the program may run.
    pub fn error(code: &'static str, text: impl Into<String>) -> Self {
        Self { level: AdviceLevel::Error, code, text: text.into() }
    }
}

/// The durable record of keys: who may run the handler of a key, and whether its effect has happened.
///
/// The contract; `onceward::testing::store` (feature `testing`) holds a named check for each sentence:
///
/// - **Batch first.** A call takes many items, costs one round trip where the store can do so, and answers one result
///   per item, in order. One bad key never fails its neighbours. The keys of one batch are distinct.
/// - **Contention is a value**, never an error.
/// - **Compare-and-set.** Every write compares key, owner token, fence *and state* in one atomic step. A late write of
///   an old claim changes nothing.
/// - **Store time** decides leases and TTL: requests carry durations, never times.
/// - **The record outlives the lease.** Fence, attempts and losses survive a lapsed lease, a release and a failure.
///   A fence is larger than every earlier one of the key, also after expiry and [`forget`](StoreAdmin::forget):
///   `max(stored + 1, store clock in µs)`.
/// - **A call whose reply was lost may be repeated** with the same owner token and answers as if it were the first.
/// - A call that returns an error may or may not have been applied, unless the error is not retryable.
///
/// # Cancel safety
/// Every method may be dropped at any point; each item was then applied wholly or not at all.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The guarantees of the store.
    fn capabilities(&self) -> StoreCapabilities;

    /// Connects, checks the schema and the settings on which the guarantees depend, and reports its findings.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be reached or must not be used as it is.
    async fn check(&self) -> Result<Vec<Advice>, Error>;

    /// Asks for the exclusive right to run the handler of each key.
    ///
    /// | found | answer |
    /// |---|---|
    /// | nothing, or a completed or dead record past its TTL | [`Claim::Claimed`], attempt 1 |
    /// | released, or failed with attempts left | [`Claim::Claimed`] |
    /// | pending by the same owner token, lease live | [`Claim::Claimed`] with the same fence and the lease that is left |
    /// | pending by another, lease live | [`Claim::InProgress`] |
    /// | pending, lease over | taken over: `lost` + 1, and an attempt more if the run had been marked as started; then as for failed |
    /// | failed with `max_attempts` used up, or a terminal failure whose lease is over, and the request's generation is not the next | [`Claim::Exhausted`]: claimed for dead-lettering only |
    /// | a terminal failure with a live lease of another | [`Claim::InProgress`] |
    /// | completed | [`Claim::Completed`], with what the completion brought |
    /// | dead, and the request's generation is not the next | [`Claim::Dead`] |
    /// | dead, or a terminal failure whose lease is over, and the request's generation is the next one | a redrive: [`Claim::Claimed`] in that generation, attempts from 1, with the request's fingerprint |
    /// | any other unexpired record with another fingerprint | [`Claim::Mismatch`], nothing changed |
    ///
    /// Fingerprints are not compared where the next generation meets a dead record or a terminal failure, whatever its
    /// lease: the payload of a dead letter may have been corrected.
    ///
    /// The next generation is the record's + 1, at most [`MAX_GENERATION`]. One further on belongs to no letter of this
    /// record and counts as a copy of the generation that is kept; only where nothing is known, any is taken up to that
    /// limit, since the store may have been lost, and one beyond the limit as 0.
    ///
    /// A record that is neither completed nor dead expires [`ClaimTerms::ttl`] after its last write or the end of its
    /// lease, whichever is later.
    async fn claim(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>>;

    /// As [`claim`](Self::claim), for runs whose effect commits together with its completion in this store
    /// ([`TransactionalStore`]): a crash of the store may forget what it has granted here. The completion is the guard, which
    /// finds no claim then, so that the effect is rolled back with it.
    ///
    /// A store whose `claim` waits for its disk need not wait here. Nothing else differs, and the default is `claim`. Only such
    /// claims may be forgotten: not a completion, a failed run or a dead letter, and no claim of a key with a record.
    async fn claim_for_commit(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        self.claim(scope, terms, batch).await
    }

    /// Records that effects have happened. The TTL counts from here. See [`Completion`] for what it may find.
    async fn complete(&self, scope: &Scope, batch: &[CompleteRequest]) -> Vec<Result<Completion, Error>>;

    /// Prolongs leases from now on, and marks runs as started where asked. Matches `pending` only: never shortens the
    /// TTL of a completed key.
    async fn renew(&self, scope: &Scope, batch: &[RenewRequest]) -> Vec<Result<Renewal, Error>>;

    /// Writes failed runs: attempts + 1, the error, and the end of the claim. A terminal failure keeps owner, fence and
    /// lease, for the dead-letter publish that follows. A repeat by the same claim changes nothing and answers the same.
    async fn fail(&self, scope: &Scope, batch: &[FailRequest]) -> Vec<Result<Failure, Error>>;

    /// Marks terminally failed keys dead, after their dead letter was confirmed. Dead records live for the TTL.
    async fn bury(&self, scope: &Scope, batch: &[BuryRequest]) -> Vec<Result<Burial, Error>>;

    /// Gives back claims whose handler was never started. Attempts, losses and the record's failure stay as they were;
    /// the key can be claimed at once. `Ok(false)`: the claim was no longer held, nothing changed.
    async fn release(&self, scope: &Scope, batch: &[Lease]) -> Vec<Result<bool, Error>>;

    /// The removal of expired records. `None`: the store expires by itself.
    fn expiring(&self) -> Option<&dyn Expiring> {
        None
    }
}

/// The operations of a store for an operator, besides those of a pipeline: redrive, forget and inspect keys.
///
/// The rules of [`Store`] hold for these methods too. A store whose keys are never inspected or redriven can do without
/// them.
#[async_trait]
pub trait StoreAdmin: Store {
    /// Opens dead keys for another generation: dead(g) → absent(g + 1), attempts and fingerprint forgotten. A terminal failure
    /// in generation g whose lease is over counts as dead: its letter was published and only the burial is missing.
    async fn redrive(&self, scope: &Scope, batch: &[RedriveRequest]) -> Vec<Result<Redrive, Error>>;

    /// Forgets keys in any state, so that the next delivery runs. Only the fence goes on growing.
    /// `Ok(false)`: the key was not known.
    async fn forget(&self, scope: &Scope, keys: &[Key]) -> Vec<Result<bool, Error>>;

    /// The record of a key, if there is an unexpired one. It changes nothing.
    ///
    /// # Errors
    /// [`Error`] if the store cannot answer.
    async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<KeyRecord>, Error>;

    /// Unexpired records in key order, at most [`ListQuery::limit`].
    ///
    /// A store may keep only the beginning of the keys of completed records; then the rest is zero, and
    /// [`inspect`](Self::inspect) and [`forget`](Self::forget) find the record by this key too. The fence that `forget` leaves
    /// then belongs to this key and not to the full one.
    ///
    /// # Errors
    /// [`Error`] if the store cannot answer.
    async fn list(&self, scope: &Scope, query: &ListQuery) -> Result<Vec<KeyRecord>, Error>;

    /// Counts unexpired keys by state.
    ///
    /// # Errors
    /// [`Error`] if the store cannot answer.
    async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error>;
}

/// The removal of expired records, for stores that do not expire by themselves: [`Store::expiring`].
///
/// Expired records never count as duplicates, removed or not.
#[async_trait]
pub trait Expiring: Send + Sync {
    /// Removes up to `limit` expired records of all scopes and returns how many it removed.
    ///
    /// # Errors
    /// [`Error`] if the store cannot answer.
    ///
    /// # Cancel safety
    /// A dropped call has removed any part of the batch.
    async fn purge(&self, limit: u32) -> Result<u64, Error>;

    /// How long ago the oldest expired record that is not removed yet expired; zero if all are removed. While it grows,
    /// [`purge`](Self::purge) does not keep up.
    ///
    /// # Errors
    /// [`Error`] if the store cannot answer.
    async fn expiry_lag(&self) -> Result<Duration, Error> {
        Ok(Duration::ZERO)
    }

    /// How often the pipeline should [`purge`](Self::purge).
    fn purge_interval(&self) -> Duration;
}
