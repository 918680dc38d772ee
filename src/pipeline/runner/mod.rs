//! Runs the user's handler under a claim: the trait [`Runner`].

mod guarded;
pub(super) mod plain;
mod transaction;
mod transaction_batch;
pub(super) mod transactional;

use std::future::Future;

use super::context::Context;
use super::measure::RoundTime;
use super::work::{ClaimedWork, Outcome, Work};
use crate::active_claim::SharedClaim;

/// One way to run a handler: [`Plain`](plain::Plain), or [`Transactional`](transactional::Transactional) inside the completion's transaction.
pub(crate) trait Runner: Send + Sync + Sized + 'static {
    /// Whether a run without a claim is possible.
    const NEEDS_CLAIM: bool;

    /// Runs the handler for `work`.
    fn run(
        context: &Context<Self>,
        work: &Work,
        claim: &SharedClaim,
        time: &RoundTime,
    ) -> impl Future<Output = Outcome> + Send;

    /// Runs the handler for several works, whose outcomes may depend on each other. `None`: that one is to run alone.
    fn run_together(
        _shared: &Context<Self>,
        group: &[ClaimedWork],
    ) -> impl Future<Output = Vec<Option<Outcome>>> + Send {
        let alone = group.iter().map(|_| None).collect();
        async { alone }
    }
}
