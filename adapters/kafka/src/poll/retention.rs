//! Counts records that retention deleted before they were read.

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::client::native;
use crate::handle::Handle;
use crate::poll::rebalance::RebalanceContext;

/// Counts the records missing in the gaps since the last call because the log starts after them.
pub(super) fn count_lost<C: ClientContext>(consumer: &BaseConsumer<RebalanceContext<C>>, handle: &Handle) {
    for gap in handle.with(|state| state.take_gaps()) {
        // The fetch that returned the record has updated the cache.
        let edges = native::cached_edges(consumer.client(), &gap.topic, gap.partition);
        if let Some((Some(log_start), _)) = edges {
            gap.report(&handle.health, log_start);
        }
    }
}
