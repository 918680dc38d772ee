//! Resolves the start offsets of pending partitions.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::handle::Handle;
use crate::poll::rebalance::RebalanceContext;
use crate::start_offsets;
use crate::state::pending::REPORT_AFTER;

/// The timeout of one request. The poll thread waits meanwhile.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Tries to resolve the start offsets of pending partitions, if that is due. Returns false if the consumer must stop; the error is
/// reported.
pub(super) fn advance<C: ClientContext>(
    consumer: &BaseConsumer<RebalanceContext<C>>,
    handle: &Handle,
) -> bool {
    let attempt = handle.with(|state| {
        // During a revocation the client fetches nothing.
        let is_due = state.pending.is_due(Instant::now()) && state.revocation.is_none();
        if state.pending.is_empty() || !is_due {
            return None;
        }
        let mut list = TopicPartitionList::new();
        for (topic, number) in state.pending.iter() {
            list.add_partition(topic, *number);
        }
        // A slow cluster gets more time once in a while.
        let is_long = state.pending.attempts().is_multiple_of(REPORT_AFTER);
        Some((list, if is_long { start_offsets::REQUEST_TIMEOUT } else { REQUEST_TIMEOUT }))
    });
    let Some((list, request_timeout)) = attempt else { return true };
    match consumer.context().resolve_starts(consumer, &list, request_timeout) {
        Ok(resolved) => {
            let (now, reason) = (Instant::now(), resolved.reason.map(|error| error.to_string()));
            let trouble = handle.with(|state| {
                state.start_pending(&resolved.starts, now);
                state.postpone(resolved.pending, reason, now)
            });
            if let Some(cause) = trouble {
                tracing::warn!(cause, "partitions are not consumed yet");
            }
            true
        }
        Err(error) => {
            handle.report(error);
            false
        }
    }
}
