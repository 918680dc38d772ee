//! The task that claims, renews and ends a claim on behalf of a caller that may be dropped at any point.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Inner;
use crate::delivery::Tag;
use crate::error::{Error, ErrorKind};
use crate::handler::claim::ActiveClaim;
use crate::key::{Fingerprint, Key};
use crate::pipeline::gather::bounded;
use crate::store::{
    Claim, ClaimRequest, Claimed, CompleteRequest, Completion, FailRequest, Failure, Lease, RenewRequest,
    Renewal,
};

/// How often a claim or a failure whose reply was lost is repeated, with the same owner token.
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
    pub(super) claim: Arc<ActiveClaim>,
    pub(super) end: oneshot::Sender<End>,
    pub(super) ended: oneshot::Receiver<Result<(), Error>>,
}

pub(super) enum End {
    Completed(Option<Bytes>),
    Failed(String),
}

/// Claims, renews and ends a claim on behalf of a caller that may be dropped at any point.
pub(super) async fn keep(
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
