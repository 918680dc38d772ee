//! Runs the user's code under a claim, and nothing else: caught when it panics, stopped when its time is up.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::OptionFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::context::Context;
use super::transaction_batch;
use super::work::{Outcome, Work};
use crate::active_claim::ActiveClaim;
use crate::error::{Error, ErrorKind};
use crate::failpoints::{self, Step};
use crate::handler::{Handler, HandlerError, IntoReply, TxHandler};
use crate::store::{Commit, CompleteRequest, Lease, TransactionalStore};
use crate::telemetry::Counter;

/// One way to run a handler: [`Plain`], or [`Transactional`] inside the completion's transaction.
pub(crate) trait Runner: Send + Sync + Sized + 'static {
    /// Whether a run without a claim is possible.
    const NEEDS_CLAIM: bool;

    /// Runs the handler for `work`.
    fn run(
        context: &Context<Self>,
        work: &Work,
        claim: &Arc<ActiveClaim>,
        now: Instant,
    ) -> impl Future<Output = Outcome> + Send;

    /// Runs the handler for several works, whose outcomes may depend on each other. `None`: that one is to run alone.
    fn run_together(
        _shared: &Context<Self>,
        group: &[Claimed],
    ) -> impl Future<Output = Vec<Option<Outcome>>> + Send {
        let alone = group.iter().map(|_| None).collect();
        async { alone }
    }
}

/// A work whose key is claimed.
pub(crate) type Claimed = (Work, Arc<ActiveClaim>);

/// The handler runs; its completion is written afterwards.
pub(crate) struct Plain<H>(pub(crate) H);

impl<H: Handler> Runner for Plain<H> {
    const NEEDS_CLAIM: bool = false;

    async fn run(context: &Context<Self>, work: &Work, claim: &Arc<ActiveClaim>, now: Instant) -> Outcome {
        // All of the user's code runs inside: the call, the future, the conversion of what it returns.
        let run = async {
            let output = context.runner.0.handle(work.message.claimed(Arc::clone(claim))).await?;
            Ok(output.into_reply())
        };
        match guarded(context, claim, now, run).await {
            Ok(reply) => Outcome::Succeeded(reply),
            Err(error) => Outcome::Failed(error),
        }
    }
}

/// The handler runs inside the transaction that also records its completion.
pub(crate) struct Transactional<S, H> {
    pub(crate) store: Arc<S>,
    pub(crate) handler: H,
    /// As many permits as the store can have transactions open.
    turns: Option<Arc<Semaphore>>,
}

impl<S: TransactionalStore, H> Transactional<S, H> {
    pub(crate) fn new(store: Arc<S>, handler: H) -> Self {
        let turns = store.max_transactions().filter(|most| (1..=Semaphore::MAX_PERMITS).contains(most));
        Self { store, handler, turns: turns.map(|most| Arc::new(Semaphore::new(most))) }
    }
}

/// The right to open a transaction.
pub(super) struct Turn(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

/// Waits until the store has a transaction to spare. Waiting is no trouble of the store, and its claims are renewed
/// meanwhile. `None`: a drain has begun.
pub(super) async fn turn<S, H>(context: &Context<Transactional<S, H>>) -> Option<Turn> {
    let Some(turns) = &context.runner.turns else { return Some(Turn(None)) };
    tokio::select! {
        biased;
        () = context.draining.cancelled() => None,
        permit = Arc::clone(turns).acquire_owned() => Some(Turn(permit.ok())),
    }
}

impl<S: TransactionalStore, H: TxHandler<S>> Runner for Transactional<S, H> {
    const NEEDS_CLAIM: bool = true;

    async fn run_together(context: &Context<Self>, group: &[Claimed]) -> Vec<Option<Outcome>> {
        transaction_batch::run(context, group).await
    }

    async fn run(context: &Context<Self>, work: &Work, claim: &Arc<ActiveClaim>, _now: Instant) -> Outcome {
        let Some(_turn) = turn(context).await else { return Outcome::Unstarted };
        // Many may have waited for their turn: no transaction is opened for nothing.
        if is_late(context, work, claim) {
            return Outcome::Unstarted;
        }
        for tries in 0..CONFLICTING_TRIES {
            if let Some(outcome) = Self::try_once(context, work, claim).await {
                return outcome;
            }
            context.count(Counter::Conflicts, 1);
            let pause = context.pause(Duration::from_millis(10), tries, Duration::from_millis(500));
            tokio::select! {
                biased;
                () = context.draining.cancelled() => break,
                () = tokio::time::sleep(pause) => claim.runs_again(),
            }
        }
        // Nothing has happened and the message is not to blame: the claim is released, and no attempt is used.
        Outcome::Unstarted
    }
}

/// How often a transaction that was certainly rolled back is tried in a row, before its message waits.
const CONFLICTING_TRIES: u32 = 6;

impl<S: TransactionalStore, H: TxHandler<S>> Transactional<S, H> {
    /// One transaction. `None`: it met another one and was rolled back, which says nothing about the message.
    async fn try_once(context: &Context<Self>, work: &Work, claim: &Arc<ActiveClaim>) -> Option<Outcome> {
        let Some(lease) = claim.lease() else { return Some(Outcome::Fenced) };
        let runner = &context.runner;
        let limit = context.config.store_timeout;
        let mut conn = match in_time(limit, "begin a transaction", runner.store.begin()).await {
            Ok(conn) => conn,
            Err(error) => {
                not_begun(context, &error);
                return Some(Outcome::Unstarted);
            }
        };
        failpoints::hit(Step::Begun);
        // Waiting for the transaction does not count against the handler, but it may have cost the lease, or the handler may
        // have been found unavailable, or the delivery be leaving.
        if is_late(context, work, claim) {
            roll_back(&*runner.store, limit, conn).await;
            return Some(Outcome::Unstarted);
        }
        let tx = runner.store.lend(&mut conn);
        let run = async { runner.handler.handle(work.message.claimed(Arc::clone(claim)), tx).await };
        if let Err(error) = guarded(context, claim, Instant::now(), run).await {
            let error = error.judged(|cause| runner.store.handler_error(cause));
            roll_back(&*runner.store, limit, conn).await;
            return (!error.is_conflict()).then_some(Outcome::Failed(error));
        }
        let request = completion(context, work, claim, lease);
        failpoints::hit(Step::CommitSent);
        let commit = runner.store.commit(conn, &context.scope, &request);
        let outcome = match in_time(limit, "commit a transaction", commit).await {
            Ok(Commit::Committed) => {
                failpoints::hit(Step::Committed);
                Outcome::Committed
            }
            Ok(Commit::Fenced) => Outcome::Fenced,
            Err(error) if error.kind() == ErrorKind::Conflict => return None,
            Err(error) if error.is_retryable() => {
                in_doubt(context, &error);
                Outcome::Unknown
            }
            Err(error) if refuses_all(&error) => {
                not_begun(context, &error);
                Outcome::Unstarted
            }
            Err(error) => Outcome::Failed(error.into()),
        };
        Some(outcome)
    }
}

/// True if a run must not begin any more.
pub(super) fn is_late<R>(context: &Context<R>, work: &Work, claim: &ActiveClaim) -> bool {
    let may_start = !context.draining.is_cancelled() && !context.halt.stops(work);
    !may_start || claim.is_cancelled() || claim.is_past_deadline(Instant::now())
}

/// True if the store refuses whatever is asked (a right or a table is missing), which is not the message's fault. Nothing was
/// committed.
pub(super) fn refuses_all(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Denied | ErrorKind::Config | ErrorKind::Unsupported)
}

/// Nothing has happened: a database that cannot be reached, or that refuses to write, uses up no attempt.
pub(super) fn not_begun<R>(context: &Context<R>, error: &Error) {
    context.count(Counter::StoreErrors, 1);
    if let Some(left_out) = context.log.transactions.allow(error.operation()) {
        tracing::warn!(
            scope = %context.scope, ?error, left_out,
            "a transaction could not be opened or was refused; its message waits and no attempt is used"
        );
    }
}

pub(super) fn in_doubt<R>(context: &Context<R>, error: &Error) {
    context.count(Counter::StoreErrors, 1);
    if let Some(left_out) = context.log.transactions.allow("in doubt") {
        tracing::warn!(
            scope = %context.scope, ?error, left_out, "the outcome of a commit is unknown; the next claim finds it out"
        );
    }
}

/// What completes the claim of a transactional run: it keeps no result.
pub(super) fn completion<R>(
    context: &Context<R>,
    work: &Work,
    claim: &ActiveClaim,
    lease: Lease,
) -> CompleteRequest {
    CompleteRequest {
        lease,
        result: None,
        fingerprint: work.fingerprint,
        generation: claim.generation(),
        ttl: context.config.ttl,
    }
}

/// Waits at most `limit` for a call of the database; past it, its outcome is unknown.
pub(super) async fn in_time<T>(
    limit: Duration,
    operation: &'static str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Timeout, operation, format!("no answer within {limit:?}")))
    })
}

/// A rollback that does not answer is left to the database: the connection is dropped with it.
pub(super) async fn roll_back<S: TransactionalStore>(store: &S, limit: Duration, conn: S::Conn) {
    let _ = tokio::time::timeout(limit, store.rollback(conn)).await;
}

/// Runs `run`: a panic becomes a failure; when the handler timeout has passed the run is asked to stop, and dropped if
/// it does not within the grace. Only then is the claim given up: a run that goes on would be an effect without a claim.
pub(super) async fn guarded<R, T>(
    context: &Context<R>,
    claim: &ActiveClaim,
    now: Instant,
    run: impl Future<Output = Result<T, HandlerError>>,
) -> Result<T, HandlerError> {
    failpoints::hit(Step::HandlerStart);
    let limit = context.config.handler_timeout;
    let mut run = pin!(OptionFuture::from(Some(AssertUnwindSafe(run).catch_unwind())));
    let ended = match tokio::time::timeout_at(now + limit, run.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            claim.cancel();
            context.count(Counter::Timeouts, 1);
            match tokio::time::timeout(context.config.cancel_grace, run.as_mut()).await {
                // What it managed to do in the grace counts: an effect that happened is an effect.
                Ok(Some(Ok(Err(error)))) => Some(Ok(Err(timed_out(limit, Some(&error))))),
                Ok(ended) => ended,
                Err(_) => Some(Ok(Err(timed_out(limit, None)))),
            }
        }
    };
    // The future goes before the claim does. A panic of its destructors stays here and changes nothing: how the run
    // ended is known by now.
    let _ = catch_unwind(AssertUnwindSafe(|| run.set(OptionFuture::default())));
    let ended = ended.unwrap_or_else(|| Ok(Err(timed_out(limit, None))));
    claim.returned();
    failpoints::hit(Step::EffectDone);
    ended.unwrap_or_else(|panic| {
        context.count(Counter::Panics, 1);
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
