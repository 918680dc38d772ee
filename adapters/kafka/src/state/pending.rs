//! Assigned partitions whose start offset is unknown: [`PendingPartitions`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::state::partition::TopicPartition;

/// The delay before the next attempt grows by this step, up to the limit.
const DELAY_STEP: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(2);
/// After so many attempts the trouble is reported.
pub(crate) const REPORT_AFTER: u32 = 3;

/// Assigned partitions that are not read, because their start offset is unknown.
///
/// The group's offset alone does not determine it: the topic may have been recreated, or the log truncated. A partition without
/// a leader stays paused and is retried; the others are consumed.
#[derive(Debug, Default)]
pub(crate) struct PendingPartitions {
    partitions: BTreeSet<TopicPartition>,
    /// The number of attempts to resolve them, and when the next one is due.
    attempts: u32,
    due: Option<Instant>,
    reason: Option<String>,
}

impl PendingPartitions {
    pub(crate) fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &TopicPartition> {
        self.partitions.iter()
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| due <= now)
    }

    /// Removes partitions. Returns true if one of them was pending.
    pub(crate) fn remove(&mut self, partitions: &[TopicPartition]) -> bool {
        let before = self.partitions.len();
        for own in partitions {
            self.partitions.remove(own);
        }
        self.partitions.len() < before
    }

    /// Adds partitions after a failed attempt at `now`, and schedules the next one.
    pub(crate) fn postpone(
        &mut self,
        partitions: impl IntoIterator<Item = TopicPartition>,
        reason: Option<String>,
        now: Instant,
    ) {
        if self.partitions.is_empty() {
            self.attempts = 0;
        }
        self.partitions.extend(partitions);
        self.attempts = self.attempts.saturating_add(1);
        self.due = Some(now + (DELAY_STEP * self.attempts).min(MAX_DELAY));
        self.reason = reason;
    }

    /// Describes partitions that stay pending for several attempts.
    pub(crate) fn trouble(&self) -> Option<String> {
        if self.attempts < REPORT_AFTER {
            return None;
        }
        let (topic, number) = self.partitions.first()?;
        let reason =
            self.reason.as_deref().unwrap_or("a partition has no leader, or describing its topic failed");
        let count = self.partitions.len();
        Some(format!(
            "{count} partitions are not consumed yet ({topic} {number} among them): {reason}; retrying"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rarer_and_lasting_trouble_is_reported() {
        let (mut pending, now) = (PendingPartitions::default(), Instant::now());
        let named = || vec![("orders".into(), 3)];
        assert!(pending.is_empty() && pending.trouble().is_none());
        for attempt in 1..100 {
            pending.postpone(named(), None, now);
            let delay = pending.due.map(|due| due - now);
            assert_eq!(delay, Some((DELAY_STEP * attempt).min(MAX_DELAY)));
            assert_eq!(pending.trouble().is_some(), attempt >= REPORT_AFTER);
        }
        assert!(pending.remove(&named()) && !pending.remove(&named()) && pending.trouble().is_none());
        pending.postpone(named(), None, now);
        assert_eq!(pending.attempts, 1, "a new series starts from the beginning");
    }
}
