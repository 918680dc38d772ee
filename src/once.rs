//! The same guarantee for those who keep a loop of their own: [`Deduplicator::once`].

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::delivery::Tag;
use crate::error::{Error, ErrorKind};
use crate::handler::Cancellation;
use crate::handler::claim::ActiveClaim;
use crate::key::{Fingerprint, Key, Scope};
use crate::pipeline::SharedStore;
use crate::pipeline::gather::{Gather, Terms, bounded};
use crate::retry::RetryPolicy;
use crate::store::{
    Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, Claimed, CompleteRequest, Completion, Entropy,
    Exhausted, FailRequest, Failure, Lease, RenewRequest, Renewal, Store,
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

const MAX_BATCH: usize = 256;

/// How often a claim or a failure whose reply was lost is repeated, with the same owner token.
const REPEATS: u32 = 3;

fn ending(operation: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, operation, "the program is ending")
}

fn one<T>(answers: Vec<Result<T, Error>>) -> Result<T, Error> {
    answers.into_iter().next().unwrap_or_else(|| Err(ending("read the store's answer")))
}

enum Answer {
    Claimed(Held),
    Other(Claim),
}

struct Held {
    claim: Arc<ActiveClaim>,
    end: oneshot::Sender<End>,
    ended: oneshot::Receiver<Result<(), Error>>,
}

enum End {
    Completed(Option<Bytes>),
    Failed(String),
}

/// Claims, renews and ends a claim on behalf of a caller that may be dropped at any point.
async fn keep(
    inner: Arc<Inner>,
    key: Key,
    fingerprint: Option<Fingerprint>,
    answer: oneshot::Sender<Result<Answer, Error>>,
) {
    let sent = Instant::now();
    let claimed = match inner.claim(key, fingerprint).await {
        Ok(Claim::Claimed(claimed)) => claimed,
        other => {
            let _ = answer.send(other.map(Answer::Other));
            return;
        }
    };
    let deadline = inner.deadline(sent).min(sent + claimed.lease_left);
    let claim = Arc::new(ActiveClaim::new(&claimed, Tag { epoch: 0, number: 0 }, sent, deadline));
    if claimed.lost > 0 && inner.mark_started(&claim).await.is_err() {
        let _ = inner.store.release(&inner.scope, &[claimed.lease]).await;
        let _ = answer.send(Ok(Answer::Other(Claim::InProgress { retry_in: inner.config.lease })));
        return;
    }
    let (end_in, end) = oneshot::channel();
    let (ended_in, ended) = oneshot::channel();
    let held = Held { claim: Arc::clone(&claim), end: end_in, ended };
    if answer.send(Ok(Answer::Claimed(held))).is_err() {
        // The caller is gone before its closure could start.
        let _ = inner.store.release(&inner.scope, &[claimed.lease]).await;
        return;
    }
    let end = inner.renew_until(&claim, end).await;
    claim.returned();
    let written = match end {
        Some(End::Completed(result)) => inner.complete(&claimed, fingerprint, result).await,
        Some(End::Failed(error)) => inner.fail(claimed.lease, error).await,
        None => inner.fail(claimed.lease, "the call was dropped while it ran".to_owned()).await,
    };
    claim.end();
    let _ = ended_in.send(written);
}

impl Inner {
    fn deadline(&self, sent: Instant) -> Instant {
        sent + self.config.lease - self.config.lease / 10
    }

    async fn claim(&self, key: Key, fingerprint: Option<Fingerprint>) -> Result<Claim, Error> {
        let owner = self.entropy.lock().unwrap_or_else(PoisonError::into_inner).token();
        let request = ClaimRequest { key, owner, fingerprint, generation: 0 };
        repeat(|| Box::pin(async move { one(self.claims.send(vec![request]).await) })).await
    }

    async fn mark_started(&self, claim: &ActiveClaim) -> Result<(), Error> {
        let lost =
            || Error::new(ErrorKind::Unavailable, "mark a run as started", "the claim is no longer held");
        let lease = claim.lease().ok_or_else(lost)?;
        let sent = Instant::now();
        let batch = [RenewRequest { lease, lease_for: self.config.lease, started: true }];
        let call = self.store.renew(&self.scope, &batch);
        match one(bounded(self.config.store_timeout, "mark a run as started", 1, call).await)? {
            Renewal::Renewed => {
                claim.renewed(sent, self.deadline(sent));
                Ok(())
            }
            Renewal::Lost => Err(lost()),
        }
    }

    /// Keeps the lease alive until the caller says how its run ended; `None` if it was dropped.
    async fn renew_until(&self, claim: &ActiveClaim, mut end: oneshot::Receiver<End>) -> Option<End> {
        let Some(lease) = claim.lease() else { return end.await.ok() };
        let period = self.config.lease / 3;
        let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
        let mut deadline = self.deadline(Instant::now());
        loop {
            let renewal = async {
                ticks.tick().await;
                let sent = Instant::now();
                let batch = [RenewRequest { lease, lease_for: self.config.lease, started: false }];
                let call = self.store.renew(&self.scope, &batch);
                (sent, one(bounded(self.config.store_timeout.min(period), "renew a lease", 1, call).await))
            };
            tokio::select! {
                biased;
                end = &mut end => return end.ok(),
                () = tokio::time::sleep_until(deadline), if !claim.is_cancelled() => {
                    claim.cancel();
                }
                (sent, renewal) = renewal => match renewal {
                    Ok(Renewal::Renewed) => {
                        deadline = self.deadline(sent);
                        claim.renewed(sent, deadline);
                    }
                    Ok(Renewal::Lost) => {
                        claim.cancel();
                        return end.await.ok();
                    }
                    // Not renewed as far as we know: the next tick tries again, and the deadline stands.
                    Err(error) => tracing::debug!(?error, "a lease was not renewed"),
                },
            }
        }
    }

    /// A completion is repeated until its outcome is known: a dropped completion would be a doubled effect.
    async fn complete(
        &self,
        claimed: &Claimed,
        fingerprint: Option<Fingerprint>,
        result: Option<Bytes>,
    ) -> Result<(), Error> {
        let request = CompleteRequest {
            lease: claimed.lease,
            result,
            fingerprint,
            generation: claimed.generation,
            ttl: self.config.ttl,
        };
        let mut pause = Duration::from_millis(50);
        loop {
            match one(self.completions.send(vec![request.clone()]).await) {
                Ok(Completion::HeldByAnother) => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "complete a key",
                        "its lease was lost and another claim holds it; the effect may happen twice",
                    ));
                }
                Ok(Completion::DoneByAnother) => {
                    tracing::warn!(key = %claimed.lease.key, "the effect of a key may have happened twice");
                    return Ok(());
                }
                Ok(Completion::Completed | Completion::Repeated | Completion::Inserted) => return Ok(()),
                Err(error) if error.is_retryable() => {
                    tracing::debug!(?error, "a completion is repeated");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn fail(&self, lease: Lease, error: String) -> Result<(), Error> {
        let batch = [FailRequest { lease, error, terminal: None }];
        repeat(|| {
            Box::pin(async {
                let call = self.store.fail(&self.scope, &batch);
                match one(bounded(self.config.store_timeout, "write a failed run", 1, call).await)? {
                    Failure::Recorded { .. } | Failure::Lost => Ok(()),
                }
            })
        })
        .await
    }
}

async fn repeat<'a, T>(call: impl Fn() -> BoxFuture<'a, Result<T, Error>>) -> Result<T, Error> {
    let mut pause = Duration::from_millis(50);
    for _ in 0..REPEATS {
        match call().await {
            Err(error) if error.is_retryable() => tokio::time::sleep(pause).await,
            answer => return answer,
        }
        pause *= 2;
    }
    call().await
}
