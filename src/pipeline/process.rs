//! The order of every delivery: claim → handle → record → settle, and between the last two its reply, where one is asked for.

use std::pin::pin;
use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::claim::{ClaimTarget, claim};
use super::context::Context;
use super::event::Event;
use super::handle::handle;
use super::outcomes::ended;
use super::record::record;
use super::reply::reply_and_settle;
use super::runner::Runner;
use super::sequence::{run_sequence, sequences};
use super::settle::settle;
use super::work::{Start, Work};

/// Takes a round of deliveries from claim to settlement. The keys of a round are distinct.
///
/// Each step starts only after the one before it is durable: nothing is handled without a claim, nothing is settled
/// before its completion, failure or dead letter is written, nor before its reply is confirmed where one is asked for. The handlers of a round run side by side, and those that
/// have ended are recorded and settled while the others still run. Consecutive deliveries of a lane run in order instead.
pub(crate) async fn process<R: Runner>(context: Arc<Context<R>>, round: Vec<Work>, target: ClaimTarget) {
    let (mut starts, _watch) = claim(&context, round, target).await;
    let sequences = sequences(&mut starts);
    let mut in_order: FuturesUnordered<_> =
        sequences.into_iter().map(|sequence| run_sequence(&context, sequence)).collect();
    tokio::join!(side_by_side(&context, starts), async { while in_order.next().await.is_some() {} });
}

async fn side_by_side<R: Runner>(context: &Context<R>, starts: Vec<Start>) {
    handle(context, starts)
        .ready_chunks(context.config.max_batch)
        .for_each_concurrent(None, |mut finished| async {
            context.send(Event::Finished(ended(context, &mut finished)));
            let recorded = record(context, finished);
            if let Some(replies) = &context.replies {
                let settled = |recorded| reply_and_settle(context, &**replies, recorded);
                return recorded.for_each_concurrent(None, settled).await;
            }
            let mut recorded = pin!(recorded);
            while let Some(recorded) = recorded.next().await {
                settle(context, recorded);
            }
        })
        .await;
}
