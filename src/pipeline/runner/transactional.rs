//! Runs a handler inside the transaction that records its completion.

use std::time::Duration;

use tokio::time::Instant;

use super::guarded::guarded;
pub(crate) use super::transaction::Transactional;
use super::transaction::{completion, in_doubt, in_time, is_late, not_begun, refuses_all, roll_back, turn};
use super::{Runner, transaction_batch};
use crate::active_claim::SharedClaim;
use crate::error::ErrorKind;
use crate::failpoints::{self, Step};
use crate::handler::TxHandler;
use crate::pipeline::context::Context;
use crate::pipeline::measure::RoundTime;
use crate::pipeline::work::{ClaimedWork, Outcome, Work};
use crate::store::{Commit, TransactionalStore};
use crate::telemetry::{Counter, Measure};

impl<S: TransactionalStore, H: TxHandler<S>> Runner for Transactional<S, H> {
    const NEEDS_CLAIM: bool = true;

    async fn run_together(context: &Context<Self>, group: &[ClaimedWork]) -> Vec<Option<Outcome>> {
        transaction_batch::run(context, group).await
    }

    async fn run(context: &Context<Self>, work: &Work, claim: &SharedClaim, _time: &RoundTime) -> Outcome {
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
    /// One transaction. `None`: it conflicted with another one and was rolled back, which shows nothing about the
    /// message.
    async fn try_once(context: &Context<Self>, work: &Work, claim: &SharedClaim) -> Option<Outcome> {
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
        let time = context.measurer.round_time(Instant::now());
        let run = || runner.handler.handle(work.message.claimed(claim.clone()), tx);
        if let Err(error) = guarded(context, claim, &time, run).await {
            let error = error.judged(|cause| runner.store.handler_error(cause));
            roll_back(&*runner.store, limit, conn).await;
            return (!error.is_conflict()).then_some(Outcome::Failed(error));
        }
        let request = completion(context, work, claim, lease);
        failpoints::hit(Step::CommitSent);
        let commit = runner.store.commit(conn, &context.scope, &request);
        let commit = context.measurer.timed(Measure::Complete, commit);
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
