//! Flushes settlements to the broker, in batches, and repeats those that failed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::event::Event;
use super::receipt::{SettleQueue, Settlements};
use crate::coalesce::bounded;
use crate::consumer::{Acker, Settled};
use crate::delivery::{Settlement, Tag};
use crate::failpoints::{self, Step};
use crate::telemetry::{Counter, Measure};

/// Flushes until `finish` fires and the queue is empty. A settlement that fails is repeated, after a growing pause and
/// beside the others; after `finish` a few times more, and then it is left: the broker delivers the message again, and
/// its key is known.
pub(crate) async fn flush_all<R>(
    context: Arc<Context<R>>,
    queue: Arc<SettleQueue>,
    acker: Arc<dyn Acker>,
    finish: CancellationToken,
) {
    let mut open = Vec::new();
    let mut repeat_at = Instant::now();
    let mut tries = 0;
    let mut last_tries = 0;
    loop {
        let Settlements { items: mut batch, spans } = tokio::select! {
            biased;
            batch = queue.next() => batch,
            () = tokio::time::sleep_until(repeat_at), if !open.is_empty() => Settlements::default(),
            () = finish.cancelled(), if open.is_empty() => {
                let rest = queue.take();
                if rest.items.is_empty() {
                    return;
                }
                rest
            }
        };
        let repeats = !open.is_empty() && Instant::now() >= repeat_at;
        if repeats {
            batch.append(&mut open);
        }
        let count = batch.len();
        let failed = flush(&context, &*acker, batch).await;
        drop(spans);
        context.send(Event::Flushed(count - failed.len()));
        if failed.is_empty() && open.is_empty() {
            tries = 0;
            continue;
        }
        if open.is_empty() {
            repeat_at =
                Instant::now() + context.pause(Duration::from_millis(50), tries, Duration::from_secs(2));
            tries = tries.saturating_add(1);
        }
        open.extend(failed);
        if finish.is_cancelled() {
            last_tries += u32::from(repeats);
            if last_tries >= LAST_TRIES {
                tracing::warn!(count = open.len(), "settlements failed; the broker will redeliver");
                return;
            }
        }
    }
}

const LAST_TRIES: u32 = 3;

/// Answers those that are to be repeated.
async fn flush<R>(
    context: &Context<R>,
    acker: &dyn Acker,
    batch: Vec<(Tag, Settlement)>,
) -> Vec<(Tag, Settlement)> {
    if context.capabilities.heartbeat.is_some() {
        context.kept_alive.let_go(batch.iter().map(|(tag, _)| *tag));
    }
    failpoints::hit(Step::AckSent);
    let limit = context.config.store_timeout;
    let call = bounded(limit, "settle deliveries", batch.len(), acker.settle(&batch));
    let answers = context.measurer.timed(Measure::Settle, call).await;
    failpoints::hit(Step::AckApplied);
    let mut open = Vec::new();
    let mut failed = None;
    for (item, answer) in batch.into_iter().zip(answers) {
        match answer {
            Ok(Settled::Done) => {}
            Ok(Settled::TooLate) => context.count(Counter::SettledTooLate, 1),
            Err(error) if error.is_retryable() => {
                context.count(Counter::SettleErrors, 1);
                tracing::debug!(?error, tag = ?item.0, "settlement failed; retrying");
                failed.get_or_insert(error);
                open.push(item);
            }
            Err(error) => {
                context.count(Counter::SettleErrors, 1);
                tracing::warn!(scope = %context.scope, ?error, tag = ?item.0, "settlement failed; the broker will redeliver");
            }
        }
    }
    if let Some(error) = failed
        && let Some(left_out) = context.log.settlements.allow(&error.to_string())
    {
        tracing::warn!(
            scope = %context.scope, ?error, count = open.len(), left_out,
            "settlements failed; retrying, and the broker may redeliver"
        );
    }
    open
}
