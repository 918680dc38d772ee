//! Notices records that the broker's retention removed before they were read: [`count`].

use std::sync::Arc;

use onceward::telemetry::SourceHealth;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::client::native;
use crate::poll::rebalance::Hooked;
use crate::state::Shared;

/// Offsets of a partition between two records that came one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Gap {
    /// How many of its offsets lie before `low`, the first one that the log still has. The others hold no records: they were
    /// aborted or compacted, or are markers of transactions.
    fn lost(&self, low: u64) -> u64 {
        low.min(self.to).saturating_sub(self.from)
    }
}

/// Counts and reports what is missing from the gaps since the last call because the log begins behind it.
pub(crate) fn count<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, shared: &Shared) {
    let gaps = std::mem::take(&mut shared.lock().gaps);
    for gap in gaps {
        // The client has it from the fetch that brought the record.
        let edges = native::known_edges(consumer.client(), &gap.topic, gap.partition);
        if let Some((Some(low), _)) = edges {
            report(&shared.health, &gap, low);
        }
    }
}

/// Counts and reports what is missing from `gap` in a log that begins at `low`.
pub(crate) fn report(health: &SourceHealth, gap: &Gap, low: u64) {
    let lost = gap.lost(low);
    if lost > 0 {
        health.lost_to_retention(lost);
        tracing::warn!(
            topic = &*gap.topic,
            partition = gap.partition,
            from = gap.from,
            to = gap.from + lost,
            "the broker deleted records before they were read (retention, or deleted on request); raise the topic's retention, \
             or add consumers"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_before_the_log_is_lost() {
        let gap = Gap { topic: "orders".into(), partition: 0, from: 10, to: 20 };
        assert_eq!([5, 10, 13, 20, 90].map(|low| gap.lost(low)), [0, 0, 3, 10, 10]);
    }
}
