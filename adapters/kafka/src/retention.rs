//! Records deleted by the broker's retention before they were read: [`OffsetGap`].

use std::sync::Arc;

use onceward::telemetry::SourceHealth;

/// Offsets of a partition between two consecutively delivered records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OffsetGap {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl OffsetGap {
    /// Returns the number of its offsets before `log_start`. The others hold no records: they were aborted or compacted, or are
    /// transaction markers.
    fn lost(&self, log_start: u64) -> u64 {
        log_start.min(self.to).saturating_sub(self.from)
    }

    /// Counts and logs the records that are lost because the log starts at `log_start`.
    pub(crate) fn report(&self, health: &SourceHealth, log_start: u64) {
        let lost = self.lost(log_start);
        if lost > 0 {
            health.lost_to_retention(lost);
            tracing::warn!(
                topic = &*self.topic,
                partition = self.partition,
                from = self.from,
                to = self.from + lost,
                "records deleted by the broker before they were read (retention, or an explicit deletion); raise the topic's \
                 retention, or add consumers"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_offsets_before_the_log_start_are_lost() {
        let gap = OffsetGap { topic: "orders".into(), partition: 0, from: 10, to: 20 };
        assert_eq!([5, 10, 13, 20, 90].map(|log_start| gap.lost(log_start)), [0, 0, 3, 10, 10]);
    }
}
