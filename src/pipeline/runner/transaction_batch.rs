//! Runs several effects in one transaction: each isolated by a savepoint, all committed at once.

use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument;

use super::guarded::guarded;
use super::transaction::{
    Transactional, completion, in_doubt, in_time, is_late, not_begun, refuses_all, roll_back, turn,
};
use crate::error::{Error, ErrorKind};
use crate::failpoints::{self, Step};
use crate::handler::{HandlerError, TxHandler};
use crate::pipeline::context::Context;
use crate::pipeline::spans;
use crate::pipeline::work::{ClaimedWork, Outcome};
use crate::store::{CompleteRequest, SharedCommit, TransactionalStore};
use crate::telemetry::{Counter, Measure};

/// Runs a group in as few transactions as its time allows. `None`: that one is to run in a transaction of its own.
pub(super) async fn run<S: TransactionalStore, H: TxHandler<S>>(
    context: &Context<Transactional<S, H>>,
    group: &[ClaimedWork],
) -> Vec<Option<Outcome>> {
    let mut outcomes = Vec::with_capacity(group.len());
    while outcomes.len() < group.len() {
        outcomes.extend(one_transaction(context, &group[outcomes.len()..]).await);
    }
    outcomes
}

/// How long a transaction goes on taking in effects: a handler's wait for its neighbours stays short against their leases,
/// and so do the locks of their rows; with a store of one writer, whose others wait, against their calls as well.
fn takes_in_for<R>(context: &Context<R>) -> Duration {
    (context.config.lease / 4).min(context.config.store_timeout / 2)
}

/// What became of one run of a transaction, before that ended.
enum Run {
    /// Its effect is kept, and commits with the others.
    Kept(CompleteRequest),
    /// Nothing of it will be committed, regardless of the others.
    Ended(Outcome),
    /// It is to run alone.
    Alone,
}

/// Takes runs from the front of `group`, at least one, until all have had their turn or the time is up; then commits those
/// that are kept.
async fn one_transaction<S: TransactionalStore, H: TxHandler<S>>(
    context: &Context<Transactional<S, H>>,
    group: &[ClaimedWork],
) -> Vec<Option<Outcome>> {
    let (store, limit) = (&*context.runner.store, context.config.store_timeout);
    let Some(_turn) = turn(context).await else {
        return group.iter().map(|_| Some(Outcome::Unstarted)).collect();
    };
    let mut conn = match in_time(limit, "begin a transaction", store.begin_shared()).await {
        Ok(conn) => conn,
        Err(error) => {
            not_begun(context, &error);
            return group.iter().map(|_| Some(Outcome::Unstarted)).collect();
        }
    };
    failpoints::hit(Step::Begun);
    let until = Instant::now() + takes_in_for(context);
    let mut runs = Vec::with_capacity(group.len());
    let mut lost = None;
    for (n, claimed) in group.iter().enumerate() {
        if lost.is_some() || (n > 0 && Instant::now() >= until) {
            break;
        }
        let is_last = n + 1 == group.len();
        runs.push(effect(context, &mut conn, claimed, is_last).await.unwrap_or_else(|(run, error)| {
            lost = Some(error);
            run
        }));
    }
    if let Some(error) = lost {
        tracing::debug!(%error, "shared transaction lost; running each effect alone");
        drop(conn);
        runs.resize_with(group.len(), || Run::Alone);
        return alone(runs);
    }
    let kept = runs.iter().filter_map(|run| match run {
        Run::Kept(request) => Some(request.clone()),
        Run::Ended(_) | Run::Alone => None,
    });
    let kept: Vec<_> = kept.collect();
    if kept.is_empty() {
        roll_back(store, limit, conn).await;
        return alone(runs);
    }
    failpoints::hit(Step::CommitSent);
    let commit = store.commit_shared(conn, &context.scope, &kept);
    let commit = context.measurer.timed(Measure::Complete, commit);
    match in_time(limit, "commit a transaction", commit).await {
        Ok(SharedCommit::Committed) => {
            failpoints::hit(Step::Committed);
            all(runs, || Some(Outcome::Committed))
        }
        Ok(SharedCommit::RolledBack) => alone(runs),
        Err(error) if error.kind() == ErrorKind::Conflict => {
            context.count(Counter::Conflicts, 1);
            alone(runs)
        }
        Err(error) if error.is_retryable() => {
            in_doubt(context, &error);
            all(runs, || Some(Outcome::Unknown))
        }
        Err(error) if refuses_all(&error) => {
            not_begun(context, &error);
            all(runs, || Some(Outcome::Unstarted))
        }
        // The commit is refused because of one of them, and it is unknown which.
        Err(error) => {
            tracing::debug!(%error, "shared commit refused; running each effect alone");
            alone(runs)
        }
    }
}

/// `outcome` for those that are kept.
fn all(runs: Vec<Run>, outcome: impl Fn() -> Option<Outcome>) -> Vec<Option<Outcome>> {
    let outcomes = runs.into_iter().map(|run| match run {
        Run::Kept(_) => outcome(),
        Run::Ended(outcome) => Some(outcome),
        Run::Alone => None,
    });
    outcomes.collect()
}

/// Nothing was committed: those that were kept run once more.
fn alone(runs: Vec<Run>) -> Vec<Option<Outcome>> {
    all(runs, || None)
}

/// Runs the handler, and keeps or undoes what it did. An error: the transaction is lost with all effects.
async fn effect<S: TransactionalStore, H: TxHandler<S>>(
    context: &Context<Transactional<S, H>>,
    conn: &mut S::Conn,
    (work, claim): &ClaimedWork,
    is_last: bool,
) -> Result<Run, (Run, Error)> {
    let (runner, limit) = (&context.runner, context.config.store_timeout);
    let Some(lease) = claim.lease() else { return Ok(Run::Ended(Outcome::Fenced)) };
    let time = context.measurer.round_time(Instant::now());
    // Waiting for its turn does not count against the handler, but it may have cost the lease.
    if is_late(context, work, claim) {
        return Ok(Run::Ended(Outcome::Unstarted));
    }
    // No handler starts on a lease with little left, and with one writer none can be renewed in here.
    if claim.is_past_deadline(time.now + context.config.lease / 2) {
        return Ok(Run::Alone);
    }
    let tx = runner.store.lend(conn);
    let handled = || runner.handler.handle(work.message.claimed(claim.clone()), tx);
    let span = spans::run(work, claim);
    let handled = match &span {
        Some(span) => guarded(context, claim, &time, handled).instrument(span.clone()).await,
        None => guarded(context, claim, &time, handled).await,
    };
    let mut handled = handled.map_err(|error| error.judged(|cause| runner.store.handler_error(cause)));
    if handled.is_ok() && !is_last {
        match in_time(limit, "keep an effect", runner.store.keep(conn)).await {
            Ok(()) => {}
            Err(error) if error.is_retryable() => {
                let counter = match error.kind() {
                    ErrorKind::Conflict => Counter::Conflicts,
                    _ => Counter::StoreErrors,
                };
                context.count(counter, 1);
                return Err((Run::Alone, error));
            }
            Err(error) => handled = Err(HandlerError::from(error)),
        }
    }
    match handled {
        Ok(()) => Ok(Run::Kept(completion(context, work, claim, lease))),
        Err(error) => {
            // It conflicted with another transaction: that shows nothing about the message, and it runs once more, alone.
            let conflict = error.is_conflict();
            span.iter().filter(|_| !conflict).for_each(spans::note_failure);
            let run = if conflict { Run::Alone } else { Run::Ended(Outcome::Failed(error)) };
            context.count(Counter::Conflicts, usize::from(conflict));
            match in_time(limit, "undo an effect", runner.store.undo(conn)).await {
                Ok(()) => Ok(run),
                Err(lost) => {
                    context.count(Counter::StoreErrors, usize::from(!conflict));
                    Err((run, lost))
                }
            }
        }
    }
}
