//! Runs the user's code under a claim, and nothing else: caught when it panics, stopped when its time is up.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::shared::Shared;
use super::work::{Outcome, Work};
use crate::failpoints::{self, Step};
use crate::handler::claim::ActiveClaim;
use crate::handler::{Handler, HandlerError, IntoReply, TxHandler};
use crate::store::{Commit, CompleteRequest, TransactionalStore};
use crate::telemetry::Counter;

/// One way to run a handler: [`Plain`], or [`Transactional`] inside the completion's transaction.
pub(crate) trait Runner: Send + Sync + Sized + 'static {
    /// Whether a run without a claim is possible.
    const NEEDS_CLAIM: bool;

    /// Runs the handler for `work`.
    fn run(
        shared: &Shared<Self>,
        work: &Work,
        claim: &Arc<ActiveClaim>,
        now: Instant,
    ) -> impl Future<Output = Outcome> + Send;
}

/// The handler runs; its completion is written afterwards.
pub(crate) struct Plain<H>(pub(crate) H);

impl<H: Handler> Runner for Plain<H> {
    const NEEDS_CLAIM: bool = false;

    async fn run(shared: &Shared<Self>, work: &Work, claim: &Arc<ActiveClaim>, now: Instant) -> Outcome {
        let run = shared.runner.0.handle(work.message.claimed(Arc::clone(claim)));
        match guarded(shared, claim, now, run).await {
            Ok(output) => Outcome::Succeeded(output.into_reply()),
            Err(error) => Outcome::Failed(error),
        }
    }
}

/// The handler runs inside the transaction that also records its completion.
pub(crate) struct Transactional<S, H> {
    pub(crate) store: Arc<S>,
    pub(crate) handler: H,
}

impl<S: TransactionalStore, H: TxHandler<S>> Runner for Transactional<S, H> {
    const NEEDS_CLAIM: bool = true;

    async fn run(shared: &Shared<Self>, work: &Work, claim: &Arc<ActiveClaim>, _now: Instant) -> Outcome {
        let Some(lease) = claim.lease() else { return Outcome::Fenced };
        let runner = &shared.runner;
        let mut conn = match runner.store.begin().await {
            Ok(conn) => conn,
            Err(error) => return Outcome::Failed(error.into()),
        };
        failpoints::hit(Step::Begun);
        // Waiting for the transaction does not count against the handler, but it may have cost the lease.
        if claim.is_past_deadline(Instant::now()) || claim.is_cancelled() {
            runner.store.rollback(conn).await;
            return Outcome::Fenced;
        }
        let tx = runner.store.lend(&mut conn);
        let run = runner.handler.handle(work.message.claimed(Arc::clone(claim)), tx);
        if let Err(error) = guarded(shared, claim, Instant::now(), run).await {
            runner.store.rollback(conn).await;
            return Outcome::Failed(error);
        }
        let request = CompleteRequest {
            lease,
            result: None,
            fingerprint: work.fingerprint,
            generation: claim.generation(),
            ttl: shared.config.ttl,
        };
        failpoints::hit(Step::CommitSent);
        match runner.store.commit(conn, &shared.scope, &request).await {
            Ok(Commit::Committed) => {
                failpoints::hit(Step::Committed);
                Outcome::Committed
            }
            Ok(Commit::Fenced) => Outcome::Fenced,
            Err(error) if error.is_retryable() => {
                tracing::warn!(key = %lease.key, %error, "the outcome of a commit is unknown; the next claim tells");
                Outcome::Unknown
            }
            Err(error) => Outcome::Failed(error.into()),
        }
    }
}

/// Runs `run`: a panic becomes a failure; when the handler timeout has passed the run is asked to stop, and dropped if
/// it does not within the grace. Only then is the claim given up: a run that goes on would be an effect without a claim.
async fn guarded<R, T>(
    shared: &Shared<R>,
    claim: &ActiveClaim,
    now: Instant,
    run: impl Future<Output = Result<T, HandlerError>>,
) -> Result<T, HandlerError> {
    failpoints::hit(Step::HandlerStart);
    let limit = shared.config.handler_timeout;
    let mut run = pin!(AssertUnwindSafe(run).catch_unwind());
    let ended = match tokio::time::timeout_at(now + limit, run.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            claim.cancel();
            shared.count(Counter::Timeouts, 1);
            match tokio::time::timeout(shared.config.cancel_grace, run).await {
                // What it managed to do in the grace counts: an effect that happened is an effect.
                Ok(Ok(Ok(output))) => Ok(Ok(output)),
                Ok(Ok(Err(error))) => Ok(Err(timed_out(limit, Some(&error)))),
                Ok(Err(panic)) => Err(panic),
                Err(_) => Ok(Err(timed_out(limit, None))),
            }
        }
    };
    claim.returned();
    failpoints::hit(Step::EffectDone);
    ended.unwrap_or_else(|panic| {
        shared.count(Counter::Panics, 1);
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "without a text".to_owned());
        Err(HandlerError::retry(format!("the handler panicked: {text}")))
    })
}

fn timed_out(limit: Duration, last: Option<&HandlerError>) -> HandlerError {
    match last {
        None => HandlerError::retry(format!("the handler did not return within {limit:?} and was dropped")),
        Some(error) => {
            let text = format!("the handler was stopped after {limit:?}: {error}");
            let timed_out = HandlerError::new(error.verdict(), text);
            if error.is_outcome_unknown() { timed_out.outcome_unknown() } else { timed_out }
        }
    }
}
