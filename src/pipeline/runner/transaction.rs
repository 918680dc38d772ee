//! Steps and failures that a transaction of one effect and a transaction of several share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::active_claim::ActiveClaim;
use crate::error::{Error, ErrorKind};
use crate::pipeline::context::Context;
use crate::pipeline::work::Work;
use crate::store::{CompleteRequest, Lease, TransactionalStore};
use crate::telemetry::Counter;

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

/// True if a run must not begin any more.
pub(super) fn is_late<R>(context: &Context<R>, work: &Work, claim: &ActiveClaim) -> bool {
    let may_start = !context.draining.is_cancelled() && !context.halt.stops(work);
    !may_start || claim.is_cancelled() || claim.is_past_deadline(Instant::now())
}

/// True if the store refuses every call (a right or a table is missing), which the message did not cause. Nothing was
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
            "transaction not begun or refused; message held, no attempt used"
        );
    }
}

pub(super) fn in_doubt<R>(context: &Context<R>, error: &Error) {
    context.count(Counter::StoreErrors, 1);
    if let Some(left_out) = context.log.transactions.allow("in doubt") {
        tracing::warn!(
            scope = %context.scope, ?error, left_out, "commit outcome unknown; the next claim resolves it"
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
        trace: context.measurer.trace_context(work.receipt.span()),
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
