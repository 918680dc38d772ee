//! The same guarantee for those who keep a loop of their own: [`Deduplicator::once`].

mod keep;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use self::keep::{Answer, End, Held, ending, keep, one};
use crate::error::Error;
use crate::handler::Cancellation;
use crate::handler::claim::ActiveClaim;
use crate::key::{Fingerprint, Key, Scope};
use crate::pipeline::SharedStore;
use crate::pipeline::gather::{Gather, Terms, bounded};
use crate::retry::RetryPolicy;
use crate::store::{
    Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Entropy, Exhausted,
    Lease, Store,
};

/// The limits of a [`Deduplicator`].
#[derive(Clone, Copy, Debug)]
pub struct OnceConfig {
    /// How long a claim lasts without renewal; it is renewed at a third of this. Default 30 s.
    pub lease: Duration,
    /// How long a completed key is remembered. It must cover the time in which duplicates can still arrive. Default 7 d.
    pub ttl: Duration,
    /// After this many failed runs a key is [`Once::Exhausted`]. Default 5.
    pub max_attempts: u32,
    /// How long a store call may take before its outcome is called unknown. Default 5 s.
    pub store_timeout: Duration,
}

impl Default for OnceConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            ttl: Duration::from_secs(7 * 24 * 3600),
            max_attempts: RetryPolicy::default().max_attempts,
            store_timeout: Duration::from_secs(5),
        }
    }
}

/// Runs a closure once for each key of a scope. Clones share everything; calls that come together share round trips.
#[derive(Clone)]
pub struct Deduplicator(Arc<Inner>);

struct Inner {
    scope: Scope,
    store: Arc<dyn Store>,
    config: OnceConfig,
    claims: Gather<ClaimRequest, Claim>,
    completions: Gather<CompleteRequest, Completion>,
    entropy: Mutex<Entropy>,
}

/// What became of a call to [`Deduplicator::once`].
#[derive(Debug)]
#[must_use = "ask may_ack() before you settle the delivery"]
pub enum Once<T> {
    /// The closure ran, and its completion is durable.
    Ran(T),
    /// The effect has happened before.
    Duplicate {
        /// What was kept with [`HeldClaim::keep`].
        result: Option<Bytes>,
    },
    /// Another claim is live. Not a reason to ack: deliver it again, not before `retry_in`, or earlier to find it done.
    InProgress {
        /// The lease that is left.
        retry_in: Duration,
    },
    /// All attempts are used up: dead-letter the message, call [`ExhaustedKey::dead_lettered`], then ack.
    Exhausted(ExhaustedKey),
    /// Its dead letter was published before.
    Dead,
    /// The key is known with another payload: two different messages share it.
    Mismatch,
}

impl<T> Once<T> {
    /// Whether the delivery may be acked: the effect has happened, here or elsewhere, or the key is dead.
    #[must_use]
    pub fn may_ack(&self) -> bool {
        match self {
            Self::Ran(_) | Self::Duplicate { .. } | Self::Dead => true,
            Self::InProgress { .. } | Self::Exhausted(_) | Self::Mismatch => false,
        }
    }
}

/// Why a call to [`Deduplicator::once`] did not come to an end. Do not ack.
#[derive(Debug)]
pub enum OnceError<E> {
    /// The closure failed; the attempt is written and the key is free for the next one.
    Failed(E),
    /// The store failed before the closure started: nothing has happened.
    Claim(Error),
    /// The closure ran, but another claim holds the key by now (its lease was lost), or the completion was refused:
    /// the effect may happen again. Deliver the message again; the next call tells.
    Completion(Error),
}

impl<E: fmt::Display> fmt::Display for OnceError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "the run failed: {error}"),
            Self::Claim(error) | Self::Completion(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for OnceError<E> {}

/// The claim under which the closure of [`Deduplicator::once`] runs.
#[derive(Debug)]
pub struct HeldClaim {
    claim: Arc<ActiveClaim>,
    result: Mutex<Option<Bytes>>,
}

impl HeldClaim {
    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.claim.attempt()
    }

    /// Larger than the fence of every earlier claim of the key.
    pub fn fence(&self) -> u64 {
        self.claim.fence()
    }

    /// The proof of the claim, for stores that can complete it in a transaction of the caller's own. A record that it
    /// completed this way is found by the completion that follows.
    pub fn lease(&self) -> Option<Lease> {
        self.claim.lease()
    }

    /// Fires when the lease is lost.
    pub fn cancellation(&self) -> Cancellation {
        Cancellation::new(Some(Arc::clone(&self.claim)))
    }

    /// Keeps `result` with the completion, for [`Once::Duplicate`]. The last call counts.
    pub fn keep(&self, result: impl Into<Bytes>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result.into());
    }
}

/// A key whose attempts are used up, claimed for dead-lettering.
#[must_use]
pub struct ExhaustedKey {
    inner: Arc<Inner>,
    exhausted: Exhausted,
}

impl ExhaustedKey {
    /// What is known of the failure.
    pub fn details(&self) -> &Exhausted {
        &self.exhausted
    }

    /// Marks the key dead. Call it after the dead letter is confirmed, and before the ack.
    ///
    /// # Errors
    /// [`Error`] if the store does not answer. The letter is confirmed, so the delivery may be acked all the same; a
    /// copy would be dead-lettered again.
    pub async fn dead_lettered(self) -> Result<Burial, Error> {
        let Self { inner, exhausted } = self;
        let batch = [BuryRequest { lease: exhausted.lease, ttl: inner.config.ttl }];
        let call = inner.store.bury(&inner.scope, &batch);
        one(bounded(inner.config.store_timeout, "mark a key dead", 1, call).await)
    }
}

impl fmt::Debug for ExhaustedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExhaustedKey").field(&self.exhausted).finish()
    }
}

/// Items in one store call.
const MAX_BATCH: usize = 256;

impl Deduplicator {
    /// A deduplicator for `scope`. It must be called inside a tokio runtime.
    pub fn new(scope: Scope, store: impl SharedStore, config: OnceConfig) -> Self {
        let store = store.as_store();
        let terms = ClaimTerms { lease: config.lease, max_attempts: config.max_attempts, ttl: config.ttl };
        let (claim_scope, claim_store) = (scope.clone(), Arc::clone(&store));
        let claims = Gather::start(
            Terms {
                operation: "claim keys",
                max_batch: MAX_BATCH,
                limit: config.store_timeout,
                clashes: |batch: &[ClaimRequest], more| {
                    more.iter().any(|one| batch.iter().any(|other| other.key == one.key))
                },
            },
            move |batch: Vec<ClaimRequest>| {
                let (scope, store) = (claim_scope.clone(), Arc::clone(&claim_store));
                async move { store.claim(&scope, &terms, &batch).await }
            },
        );
        let (complete_scope, complete_store) = (scope.clone(), Arc::clone(&store));
        let completions = Gather::start(
            Terms {
                operation: "complete keys",
                max_batch: MAX_BATCH,
                limit: config.store_timeout,
                clashes: |batch: &[CompleteRequest], more| {
                    more.iter().any(|one| batch.iter().any(|other| other.lease.key == one.lease.key))
                },
            },
            move |batch: Vec<CompleteRequest>| {
                let (scope, store) = (complete_scope.clone(), Arc::clone(&complete_store));
                async move { store.complete(&scope, &batch).await }
            },
        );
        let entropy = Mutex::new(Entropy::system());
        Self(Arc::new(Inner { scope, store, config, claims, completions, entropy }))
    }

    /// The scope of its keys.
    pub fn scope(&self) -> &Scope {
        &self.0.scope
    }

    /// Runs `run` unless the effect of `key` has happened or is happening elsewhere. The closure runs in the caller's
    /// task and may borrow; claim, renewal and completion live in a task of their own.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use onceward::{Deduplicator, Key, MemoryStore, Once, OnceConfig, Scope};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let scope = Scope::parse("billing")?;
    /// let dedup = Deduplicator::new(scope.clone(), Arc::new(MemoryStore::new()), OnceConfig::default());
    /// let key = Key::of(&scope, "order-7")?;
    /// let mut charged = Vec::new();
    /// for _delivery in 0..2 {
    ///     let once = dedup
    ///         .once(&key, async |claim| {
    ///             charged.push(claim.fence());
    ///             Ok::<_, std::io::Error>("receipt")
    ///         })
    ///         .await?;
    ///     if once.may_ack() { /* ack the delivery */ }
    /// }
    /// assert_eq!(charged.len(), 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`OnceError`]; each variant says what has happened. Never ack after one.
    ///
    /// # Cancel safety
    /// A dropped call abandons the claim: a run that had started counts as a failed attempt, and the key is free at once.
    /// A completion that was under way is still written.
    pub async fn once<T, E, F>(&self, key: &Key, run: F) -> Result<Once<T>, OnceError<E>>
    where
        F: AsyncFnOnce(&HeldClaim) -> Result<T, E>,
        E: fmt::Display,
    {
        self.run(*key, None, run).await
    }

    /// As [`once`](Self::once), and compares the payload with that of the first delivery: [`Once::Mismatch`].
    ///
    /// # Errors
    /// As [`once`](Self::once).
    ///
    /// # Cancel safety
    /// As [`once`](Self::once).
    pub async fn once_for<T, E, F>(&self, key: &Key, payload: &[u8], run: F) -> Result<Once<T>, OnceError<E>>
    where
        F: AsyncFnOnce(&HeldClaim) -> Result<T, E>,
        E: fmt::Display,
    {
        self.run(*key, Some(Fingerprint::of(payload)), run).await
    }

    async fn run<T, E, F>(
        &self,
        key: Key,
        fingerprint: Option<Fingerprint>,
        run: F,
    ) -> Result<Once<T>, OnceError<E>>
    where
        F: AsyncFnOnce(&HeldClaim) -> Result<T, E>,
        E: fmt::Display,
    {
        let (answer_in, answer) = oneshot::channel();
        tokio::spawn(keep(Arc::clone(&self.0), key, fingerprint, answer_in));
        let held =
            match answer.await.unwrap_or_else(|_| Err(ending("claim a key"))).map_err(OnceError::Claim)? {
                Answer::Claimed(held) => held,
                Answer::Other(claim) => return Ok(self.not_run(claim)),
            };
        let Held { claim, end, ended } = held;
        let claim = HeldClaim { claim, result: Mutex::new(None) };
        let outcome = run(&claim).await;
        let result = claim.result.into_inner().unwrap_or_else(PoisonError::into_inner);
        let last = match &outcome {
            Ok(_) => End::Completed(result),
            Err(error) => End::Failed(error.to_string()),
        };
        let _ = end.send(last);
        let written = ended.await.unwrap_or_else(|_| Err(ending("complete a key")));
        match outcome {
            Ok(value) => written.map(|()| Once::Ran(value)).map_err(OnceError::Completion),
            Err(error) => Err(OnceError::Failed(error)),
        }
    }

    fn not_run<T>(&self, claim: Claim) -> Once<T> {
        match claim {
            Claim::Completed { result, .. } => Once::Duplicate { result },
            Claim::InProgress { retry_in } => Once::InProgress { retry_in },
            Claim::Exhausted(exhausted) => {
                Once::Exhausted(ExhaustedKey { inner: Arc::clone(&self.0), exhausted })
            }
            Claim::Dead { .. } => Once::Dead,
            Claim::Mismatch => Once::Mismatch,
            // `keep` hands claims over as `Answer::Claimed`.
            Claim::Claimed(claimed) => Once::InProgress { retry_in: claimed.lease_left },
        }
    }
}

impl fmt::Debug for Deduplicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deduplicator").field("scope", &self.0.scope).finish_non_exhaustive()
    }
}
