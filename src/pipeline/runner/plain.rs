//! Runs a handler whose completion is written afterwards: [`Plain`].

use super::Runner;
use super::guarded::guarded;
use crate::active_claim::SharedClaim;
use crate::handler::{Handler, IntoReply};
use crate::pipeline::context::Context;
use crate::pipeline::measure::RoundTime;
use crate::pipeline::work::{Outcome, Work};

/// The handler runs; its completion is written afterwards.
pub(crate) struct Plain<H>(pub(crate) H);

impl<H: Handler> Runner for Plain<H> {
    const NEEDS_CLAIM: bool = false;

    async fn run(context: &Context<Self>, work: &Work, claim: &SharedClaim, time: &RoundTime) -> Outcome {
        // All of the user's code runs inside: the call, the future, the conversion of what it returns.
        let run = || async {
            let output = context.runner.0.handle(work.message.claimed(claim.clone())).await?;
            Ok(output.into_reply())
        };
        match guarded(context, claim, time, run).await {
            Ok(reply) => Outcome::Succeeded(reply),
            Err(error) => Outcome::Failed(error),
        }
    }
}
