//! The task that claims, renews and ends a claim on behalf of a caller that may be dropped at any point.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::inner::Inner;
use crate::active_claim::{ActiveClaim, SharedClaim};
use crate::delivery::Tag;
use crate::error::{Error, ErrorKind};
use crate::key::{Fingerprint, Key};
use crate::store::{
    Claim, ClaimRequest, Claimed, CompleteRequest, Completion, Exhausted, FailRequest, Failure, Reason,
    RenewRequest, Renewal,
};
use crate::telemetry::Counter;

/// How often a call whose outcome is unknown is repeated, with the same owner token, where it is not repeated until it is
/// known.
const REPEATS: u32 = 3;

pub(super) fn ending(operation: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, operation, "the program is ending")
}

pub(super) fn one<T>(answers: Vec<Result<T, Error>>) -> Result<T, Error> {
    answers.into_iter().next().unwrap_or_else(|| Err(ending("read the store's answer")))
}

pub(super) enum Answer {
    Claimed(Held),
    Other(Claim),
}

pub(super) struct Held {
    pub(super) claim: SharedClaim,
    /// Set by the caller when its closure starts.
    pub(super) started: Arc<AtomicBool>,
    pub(super) end: oneshot::Sender<End>,
    pub(super) ended: oneshot::Receiver<Result<Written, Error>>,
}

/// How a run ended.
pub(super) enum End {
    Completed(Option<Bytes>),
    Failed(String),
    /// It is not worth another try.
    Permanent(String),
    /// Nothing has happened: no attempt is used.
    Released,
}

/// The outcome that was written for it.
pub(super) enum Written {
    Completed,
    Failed,
    Permanent(Exhausted),
    Released,
}

/// Claims, renews and ends a claim on behalf of a caller that may be dropped at any point.
pub(super) async fn keep(
    inner: Arc<Inner>,
    key: Key,
    fingerprint: Option<Fingerprint>,
    answer: oneshot::Sender<Result<Answer, Error>>,
) {
    let (claim, claimed) = match inner.claim(key, fingerprint).await {
        Ok(Ok(held)) => held,
        Ok(Err(found)) => {
            let _ = answer.send(Ok(Answer::Other(found)));
            return;
        }
        Err(error) => {
            let _ = answer.send(Err(error));
            return;
        }
    };
    let (end_in, end) = oneshot::channel();
    let (ended_in, ended) = oneshot::channel();
    let started = Arc::new(AtomicBool::new(false));
    let held = Held { claim: claim.clone(), started: Arc::clone(&started), end: end_in, ended };
    if answer.send(Ok(Answer::Claimed(held))).is_err() {
        // The caller was dropped before its closure could start.
        let _ = inner.release(&claimed).await;
        return;
    }
    let recorded = async {
        let end = end.await.unwrap_or_else(|_| match started.load(Ordering::Acquire) {
            true => End::Failed("the call was dropped while it ran".to_owned()),
            false => End::Released,
        });
        claim.returned();
        match end {
            End::Completed(result) => {
                inner.complete(&claimed, fingerprint, result).await.map(|()| Written::Completed)
            }
            End::Failed(error) => inner.fail(&claimed, error, None).await,
            End::Permanent(error) => inner.fail(&claimed, error, Some(Reason::Permanent)).await,
            End::Released => inner.release(&claimed).await.map(|()| Written::Released),
        }
    };
    let written = inner.renew_while(&claim, recorded).await;
    claim.end();
    let _ = ended_in.send(written);
}

impl Inner {
    pub(super) fn count(&self, counter: Counter) {
        self.counters.add(counter, 1);
    }

    /// How long after a claim or renewal was sent its run must have stopped.
    fn holds_for(&self) -> Duration {
        self.config.lease - self.config.lease / 10
    }

    /// `Ok(Ok(…))`: claimed, with at least half of the lease left, and marked as started where an earlier claim lapsed.
    async fn claim(
        &self,
        key: Key,
        fingerprint: Option<Fingerprint>,
    ) -> Result<Result<(SharedClaim, Claimed), Claim>, Error> {
        self.count(Counter::Received);
        let owner = self.entropy.lock().token();
        let request = ClaimRequest { key, owner, fingerprint, generation: 0 };
        // The deadline counts from the first try: its reply may have been lost.
        let sent = Instant::now();
        let claim = repeat(Error::is_retryable, || {
            Box::pin(async move { one(self.calls.claims.send(vec![request]).await) })
        });
        let claimed = match claim.await? {
            Claim::Claimed(claimed) => claimed,
            other => {
                self.count_unclaimed(&other);
                return Ok(Err(other));
            }
        };
        let holds_for = self.holds_for().min(claimed.lease_left);
        let claim = ActiveClaim::new(&claimed, Tag { epoch: 0, number: 0 }, sent, holds_for);
        let claim = SharedClaim::new(claim);
        let lapsed_before = claimed.lost > 0;
        if lapsed_before {
            self.count(Counter::Takeovers);
        }
        let little_left = claim.is_past_deadline(Instant::now() + self.config.lease / 2);
        if lapsed_before || little_left {
            match self.renew(&claim, &claimed, lapsed_before).await {
                Ok(Renewal::Renewed) => {}
                Ok(Renewal::Lost) => {
                    self.count(Counter::Fenced);
                    return Ok(Err(Claim::InProgress { retry_in: self.config.lease }));
                }
                Err(error) => {
                    let _ = self.release(&claimed).await;
                    return Err(error);
                }
            }
        }
        Ok(Ok((claim, claimed)))
    }

    fn count_unclaimed(&self, claim: &Claim) {
        match claim {
            Claim::Completed { .. } => self.count(Counter::Duplicates),
            Claim::Dead { .. } => self.count(Counter::DuplicatesOfDead),
            Claim::InProgress { .. } => self.count(Counter::InProgress),
            Claim::Mismatch => self.count(Counter::Mismatches),
            Claim::Exhausted(_) | Claim::Claimed(_) => {}
        }
    }

    async fn renew(&self, claim: &ActiveClaim, claimed: &Claimed, started: bool) -> Result<Renewal, Error> {
        let request = RenewRequest { lease: claimed.lease, lease_for: self.config.lease, started };
        let sent = Instant::now();
        let renewal = one(self.calls.renewals.send(vec![request]).await)?;
        if renewal == Renewal::Renewed {
            claim.renewed(sent, sent + self.holds_for());
        }
        Ok(renewal)
    }

    /// Rounds down to a grid, so that the renewals of many calls come together and share a call.
    pub(super) fn on_grid(&self, at: Instant) -> Instant {
        let grid = (self.config.lease / 24).as_nanos().max(1);
        let since = at.saturating_duration_since(self.started_at).as_nanos();
        let on_grid = u64::try_from(since - since % grid).unwrap_or(u64::MAX);
        self.started_at + Duration::from_nanos(on_grid)
    }

    /// Keeps the lease alive until `recorded` is done: while the closure runs, and while what became of it is written.
    async fn renew_while<T>(&self, claim: &ActiveClaim, recorded: impl Future<Output = T>) -> T {
        let mut recorded = pin!(recorded);
        let Some(lease) = claim.lease() else { return recorded.await };
        let mut renew_at = self.on_grid(claim.last_sent() + self.config.lease / 3);
        let mut warned = false;
        loop {
            let renewal = async {
                tokio::time::sleep_until(renew_at).await;
                let request = RenewRequest { lease, lease_for: self.config.lease, started: false };
                let sent = Instant::now();
                (sent, one(self.calls.renewals.send(vec![request]).await))
            };
            tokio::select! {
                biased;
                recorded = &mut recorded => return recorded,
                () = tokio::time::sleep_until(claim.deadline()), if !warned => {
                    warned = true;
                    self.cancel(claim, "a lease is about to end without a renewal; its run is asked to stop");
                }
                (sent, renewal) = renewal => match renewal {
                    Ok(Renewal::Renewed) => {
                        claim.renewed(sent, sent + self.holds_for());
                        renew_at = self.on_grid(sent + self.config.lease / 3);
                    }
                    Ok(Renewal::Lost) => {
                        self.cancel(claim, "a lease was lost to another claim; its run is asked to stop");
                        return recorded.await;
                    }
                    // Not renewed as far as we know: it is retried soon, and the deadline remains.
                    Err(error) => {
                        tracing::debug!(?error, "lease renewal failed");
                        renew_at = Instant::now() + self.config.lease / 24;
                    }
                },
            }
        }
    }

    fn cancel(&self, claim: &ActiveClaim, what: &'static str) {
        if claim.cancel() {
            self.count(Counter::LeasesLost);
            tracing::warn!(scope = %self.scope, key = claim.key().map(tracing::field::display), "{what}");
        }
    }

    /// A completion is repeated until the store answers about its record: a dropped completion would be a doubled effect.
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
            trace: None,
        };
        let mut pause = Duration::from_millis(50);
        loop {
            match one(self.calls.completions.send(vec![request.clone()]).await) {
                Ok(Completion::HeldByAnother) => {
                    self.count(Counter::Fenced);
                    self.count(Counter::SuspectedDoubleEffects);
                    return Err(lost("complete a key", "the effect may happen twice"));
                }
                Ok(Completion::DoneByAnother) => {
                    self.count(Counter::SuspectedDoubleEffects);
                    tracing::warn!(
                        scope = %self.scope, key = %claimed.lease.key, "suspected double effect"
                    );
                }
                Ok(Completion::Inserted) => self.count(Counter::ClaimLost),
                Ok(Completion::Completed | Completion::Repeated) => {}
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.count(Counter::SuspectedDoubleEffects);
                    return Err(error);
                }
                Err(error) => {
                    self.log_repeated(&error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                    continue;
                }
            }
            self.count(Counter::Handled);
            return Ok(());
        }
    }

    fn log_repeated(&self, error: &Error) {
        if error.is_retryable() {
            tracing::debug!(?error, "store write failed; retrying with the same owner token");
        } else if let Some(left_out) = self.refused.allow(error.operation()) {
            tracing::error!(
                scope = %self.scope, ?error, left_out,
                "store write refused; retrying and keeping its claims: restore the rights, login or schema of the \
                 store"
            );
        }
    }

    /// A failure is repeated for as long as the lease would last without renewals; then the lease ends the claim.
    async fn fail(
        &self,
        claimed: &Claimed,
        error: String,
        terminal: Option<Reason>,
    ) -> Result<Written, Error> {
        self.count(Counter::RunsFailed);
        let request = FailRequest { lease: claimed.lease, error, terminal };
        let until = Instant::now() + self.config.lease;
        let mut pause = Duration::from_millis(50);
        let failure = loop {
            match one(self.calls.failures.send(vec![request.clone()]).await) {
                Err(error) if error.kind() != ErrorKind::Corrupt && Instant::now() + pause < until => {
                    self.log_repeated(&error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                answer => break answer?,
            }
        };
        let Failure::Recorded { attempts, first_age } = failure else {
            self.count(Counter::Fenced);
            return Err(lost("write a failed run", "nothing was written of this one"));
        };
        let Some(reason) = terminal else {
            self.count(Counter::Retried);
            return Ok(Written::Failed);
        };
        Ok(Written::Permanent(Exhausted {
            lease: claimed.lease,
            reason,
            error: Some(request.stored_error().to_owned()),
            attempts,
            lost: claimed.lost,
            generation: claimed.generation,
            first_age,
            last_age: Duration::ZERO,
        }))
    }

    async fn release(&self, claimed: &Claimed) -> Result<(), Error> {
        let lease = claimed.lease;
        let release = || -> BoxFuture<'_, Result<bool, Error>> {
            Box::pin(async move { one(self.calls.releases.send(vec![lease]).await) })
        };
        // No longer held: then there is nothing to release.
        repeat(|error| error.kind() != ErrorKind::Corrupt, release).await.map(|_| ())
    }
}

fn lost(operation: &'static str, what: &str) -> Error {
    let context = format!("its lease was lost and another claim holds the key; {what}");
    Error::new(ErrorKind::Unavailable, operation, context)
}

/// Repeats a call a few times, as long as its error is `worth` it.
pub(super) async fn repeat<'a, T>(
    worth: impl Fn(&Error) -> bool,
    call: impl Fn() -> BoxFuture<'a, Result<T, Error>>,
) -> Result<T, Error> {
    let mut pause = Duration::from_millis(50);
    for _ in 0..REPEATS {
        match call().await {
            Err(error) if worth(&error) => tokio::time::sleep(pause).await,
            answer => return answer,
        }
        pause *= 2;
    }
    call().await
}
