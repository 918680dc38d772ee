//! Deduplication without a pipeline, for programs with a receive loop of their own: [`Deduplicator::once`].

mod calls;
mod config;
mod inner;
mod keep;
#[cfg(test)]
mod tests;

use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::calls::Calls;
pub use self::config::OnceConfig;
use self::inner::Inner;
use self::keep::{Answer, End, Held, Written, ending, keep, one, repeat};
use crate::active_claim::SharedClaim;
use crate::cancellation::Cancellation;
use crate::coalesce::bounded;
use crate::error::{Error, ErrorKind};
use crate::janitor::Janitor;
use crate::key::{Fingerprint, Key, Scope};
use crate::store::{Burial, BuryRequest, Claim, Entropy, Exhausted, Lease, SharedStore};
use crate::telemetry::{Counter, Counters, RateLimited};

/// Runs a closure once for each key of a scope. Clones share everything; calls that come together share round trips. It also
/// removes expired keys from stores that do not expire by themselves.
#[derive(Clone)]
pub struct Deduplicator(Arc<Inner>);

/// What became of a call to [`Deduplicator::once`].
#[derive(Debug)]
#[must_use = "ask may_ack() before you settle the delivery"]
pub enum Once<T> {
    /// The closure ran, and its completion is durable.
    Ran(T),
    /// The effect has happened before.
    Duplicate {
        /// The result that was kept with [`HeldClaim::keep`].
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
    /// The closure failed and called that permanent ([`HeldClaim::permanent`]), which is written: dead-letter the message,
    /// call [`ExhaustedKey::dead_lettered`], then ack.
    Permanent(E, ExhaustedKey),
    /// The closure found what it needs unavailable ([`HeldClaim::unavailable`]): nothing has happened, no attempt is used,
    /// and the key is free. Deliver the message again later.
    Unavailable(E),
    /// The closure failed, and the store did not take that down: no attempt is used as far as we know, and the key may be
    /// held until its lease ends.
    Unwritten {
        /// Why the closure failed.
        error: E,
        /// Why it was not written.
        store: Error,
    },
    /// The store failed before the closure started: nothing has happened.
    Claim(Error),
    /// The closure ran, but another claim holds the key by now (its lease was lost), or the completion was refused:
    /// the effect may happen again. Redeliver the message; the next call finds the outcome.
    Completion(Error),
}

impl<E: fmt::Display> fmt::Display for OnceError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "the run failed: {error}"),
            Self::Permanent(error, _) => write!(f, "the run failed for good: {error}"),
            Self::Unavailable(error) => write!(f, "the run found what it needs unavailable: {error}"),
            Self::Unwritten { error, store } => {
                write!(f, "the run failed: {error}; that was not written: {store}")
            }
            Self::Claim(error) | Self::Completion(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for OnceError<E> {}

/// The claim under which the closure of [`Deduplicator::once`] runs.
#[derive(Debug)]
pub struct HeldClaim {
    claim: SharedClaim,
    result: Mutex<Option<Bytes>>,
    failure: AtomicU8,
}

const RETRY: u8 = 0;
const PERMANENT: u8 = 1;
const UNAVAILABLE: u8 = 2;

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
        Cancellation::new(Some(self.claim.clone()))
    }

    /// Marks a failure of this run as permanent, since another try is useless, and passes `error` on:
    /// [`OnceError::Permanent`]. The last mark counts.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use onceward::{Deduplicator, Key, MemoryStore, OnceConfig, OnceError, Scope};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let scope = Scope::parse("billing")?;
    /// # let dedup = Deduplicator::new(scope.clone(), Arc::new(MemoryStore::new()), OnceConfig::default())?;
    /// let once = dedup
    ///     .once(&Key::of(&scope, "order-7")?, async |claim| {
    ///         "seven".parse::<u32>().map_err(|error| claim.permanent(error))
    ///     })
    ///     .await;
    /// if let Err(OnceError::Permanent(_why, key)) = once {
    ///     // publish the dead letter, and when that is confirmed:
    ///     key.dead_lettered().await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn permanent<E>(&self, error: E) -> E {
        self.failure.store(PERMANENT, Ordering::Relaxed);
        error
    }

    /// Marks a failure of this run as not caused by the message and without effect (a service that refuses
    /// connections), and passes `error` on: [`OnceError::Unavailable`]. No attempt is used. The last mark counts.
    pub fn unavailable<E>(&self, error: E) -> E {
        self.failure.store(UNAVAILABLE, Ordering::Relaxed);
        error
    }

    /// Keeps `result` with the completion, for [`Once::Duplicate`]. The last call counts.
    pub fn keep(&self, result: impl Into<Bytes>) {
        *self.result.lock() = Some(result.into());
    }
}

/// A key whose attempts are used up, claimed for dead-lettering.
#[must_use]
pub struct ExhaustedKey {
    inner: Arc<Inner>,
    exhausted: Exhausted,
}

impl ExhaustedKey {
    /// The known facts about the failure.
    pub fn details(&self) -> &Exhausted {
        &self.exhausted
    }

    /// Marks the key dead. Call it after the dead letter is confirmed, and before the ack.
    ///
    /// # Errors
    /// [`Error`] if the store does not answer. The letter is confirmed, so the delivery may be acked anyway; a copy
    /// would be dead-lettered again.
    pub async fn dead_lettered(self) -> Result<Burial, Error> {
        let Self { inner, exhausted } = self;
        let batch = [BuryRequest { lease: exhausted.lease, ttl: inner.config.ttl }];
        let (inner, batch) = (&inner, &batch);
        repeat(
            |error| error.kind() != ErrorKind::Corrupt,
            || {
                Box::pin(async move {
                    let call = inner.store.bury(&inner.scope, batch);
                    one(bounded(inner.config.store_timeout, "mark a key dead", 1, call).await)
                })
            },
        )
        .await
    }
}

impl fmt::Debug for ExhaustedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExhaustedKey").field(&self.exhausted).finish()
    }
}

impl Deduplicator {
    /// A deduplicator for `scope`. It must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error`] of the kind `Config` if [`OnceConfig::check`] finds something.
    pub fn new(scope: Scope, store: impl SharedStore, config: OnceConfig) -> Result<Self, Error> {
        config.check()?;
        let store = store.as_store();
        let counters = Arc::new(Counters::default());
        Ok(Self(Arc::new(Inner {
            calls: Calls::start(&scope, &store, &config, &counters),
            _janitor: Janitor::start(Arc::clone(&store), Arc::clone(&counters)),
            refused: RateLimited::default(),
            entropy: Mutex::new(Entropy::system()),
            started_at: Instant::now(),
            scope,
            store,
            config,
            counters,
        })))
    }

    /// What it counts, under the same names as a pipeline: `received` are calls. May be read at any time.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.0.counters)
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
    /// let dedup = Deduplicator::new(scope.clone(), Arc::new(MemoryStore::new()), OnceConfig::default())?;
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
    /// [`OnceError`]; each variant describes what has happened. Never ack after one.
    ///
    /// # Cancel safety
    /// A dropped call abandons the claim: a run that had started counts as a failed attempt, and the key is free at once.
    /// A completion that was under way is still written. A call waits for its completion for as long as the store does not
    /// answer, while its lease is renewed; a caller that cannot wait so long drops the call.
    pub async fn once<T, E, F>(&self, key: &Key, run: F) -> Result<Once<T>, OnceError<E>>
    where
        F: AsyncFnOnce(&HeldClaim) -> Result<T, E>,
        E: fmt::Display,
    {
        self.run(*key, None, run).await
    }

    /// As [`once`](Self::once), and compares the payload with that of the first delivery, as configured by
    /// [`OnceConfig::fingerprint`]: [`Once::Mismatch`].
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
        self.run(*key, self.0.config.fingerprint.of(payload), run).await
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
        let Held { claim, started, end, ended } = held;
        if claim.is_cancelled() || claim.is_past_deadline(Instant::now()) {
            // The caller came too late for its own claim: nothing starts on a lease that may be over.
            let _ = end.send(End::Released);
            let _ = ended.await;
            return Ok(Once::InProgress { retry_in: Duration::ZERO });
        }
        started.store(true, Ordering::Release);
        let claim = HeldClaim { claim, result: Mutex::new(None), failure: AtomicU8::new(RETRY) };
        let outcome = run(&claim).await;
        let result = claim.result.into_inner();
        let last = match &outcome {
            Ok(_) => End::Completed(result),
            Err(error) => match claim.failure.into_inner() {
                PERMANENT => End::Permanent(error.to_string()),
                UNAVAILABLE => {
                    self.0.count(Counter::Unavailable);
                    End::Released
                }
                _ => End::Failed(error.to_string()),
            },
        };
        let _ = end.send(last);
        let written = ended.await.unwrap_or_else(|_| Err(ending("record how a run ended")));
        match (outcome, written) {
            (Ok(value), Ok(_)) => Ok(Once::Ran(value)),
            (Ok(_), Err(error)) => Err(OnceError::Completion(error)),
            (Err(error), Err(store)) => Err(OnceError::Unwritten { error, store }),
            (Err(error), Ok(Written::Permanent(exhausted))) => {
                let inner = Arc::clone(&self.0);
                Err(OnceError::Permanent(error, ExhaustedKey { inner, exhausted }))
            }
            (Err(error), Ok(Written::Released)) => Err(OnceError::Unavailable(error)),
            (Err(error), Ok(Written::Failed | Written::Completed)) => Err(OnceError::Failed(error)),
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
