//! Releases claims whose handlers do not run.

use super::decided::ask_again;
use crate::failpoints::{self, Step};
use crate::pipeline::context::Context;
use crate::pipeline::runner::Runner;
use crate::pipeline::work::{Behind, Finished, Outcome, Plan, Recorded, Start, Verdict, Work};
use crate::store::Lease;

/// Releases the claims of deliveries behind one at which their sequence has stopped. They use no attempt, and wait for nothing
/// but their place in the order.
pub(in crate::pipeline) async fn release_behind<R: Runner>(
    context: &Context<R>,
    rest: Vec<Start>,
) -> Vec<Behind> {
    let mut leases = Vec::new();
    let mut claims = Vec::new();
    let mut behind = Vec::with_capacity(rest.len());
    for start in rest {
        behind.push(match start {
            Start::Run { work, claim, .. } | Start::Wait { work, claim } => {
                claim.returned();
                leases.extend(claim.lease());
                claims.push(claim);
                Behind { work, plan: None }
            }
            Start::Known { work, outcome } => known_behind(work, outcome),
        });
    }
    release_claims(context, leases).await;
    claims.iter().for_each(|claim| claim.end());
    behind
}

/// What is left to do with a delivery whose handler does not run, when it is its turn.
fn known_behind(mut work: Work, outcome: Outcome) -> Behind {
    let plan = match outcome {
        Outcome::Decided(Verdict::Ack(counter)) => Some(Plan::Ack(counter)),
        Outcome::Exhausted(exhausted) => {
            // Claimed for its letter: with the same token the claim recognises itself.
            work.owner = Some(exhausted.lease.owner);
            None
        }
        _ => None,
    };
    Behind { work, plan }
}

/// Releases claims of which nothing has started. A suspect may be marked as started by now, and a mark that is left standing
/// would cost it an attempt.
async fn release_claims<R: Runner>(context: &Context<R>, leases: Vec<Lease>) {
    if leases.is_empty() {
        return;
    }
    failpoints::hit(Step::ReleaseSent);
    context
        .until_known(&leases, |batch| {
            Box::pin(async move {
                let call = context.store.release(&context.scope, &batch);
                context.store_call("release unstarted claims", batch.len(), call).await
            })
        })
        .await;
}

pub(super) async fn release<R: Runner>(context: &Context<R>, unstarted: Vec<Finished>) -> Vec<Recorded> {
    let leases: Vec<_> = unstarted
        .iter()
        .filter_map(|finished| finished.claim.as_ref().and_then(|claim| claim.lease()))
        .collect();
    for finished in &unstarted {
        finished.claim.iter().for_each(|claim| claim.returned());
    }
    release_claims(context, leases).await;
    unstarted.into_iter().map(|finished| ask_again(context, finished)).collect()
}
