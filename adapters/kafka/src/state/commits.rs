//! Commits: the offsets to send, those confirmed, and those that failed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::state::ConsumerState;
use crate::state::partition::{AssignedPartition, TopicPartition};

/// How long the client may take to report the result of a commit. It retries without a coordinator for as long as a session lasts.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(60);

/// An offset to commit, with the metadata that identifies its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OffsetCommit {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) offset: u64,
    pub(crate) metadata: String,
}

impl OffsetCommit {
    fn new(own: &AssignedPartition, offset: u64) -> Self {
        let (topic, partition) = own.id();
        Self { topic, partition, offset, metadata: own.log.to_string() }
    }
}

impl ConsumerState {
    /// Returns the offsets to commit now. They count as sent unless [`commit_failed`](Self::commit_failed) follows.
    pub(crate) fn take_commits(&mut self, now: Instant) -> Vec<OffsetCommit> {
        let take = |own: &mut AssignedPartition| {
            let offset = own.offset_to_commit(now)?;
            own.sent_commit = Some((offset, now));
            Some(OffsetCommit::new(own, offset))
        };
        // Nothing is committed for a log that may be gone.
        self.partitions.values_mut().filter(|own| !own.doubtful).filter_map(take).collect()
    }

    /// Returns the offsets of partitions that leave which are not confirmed: this is the last chance to commit them.
    pub(crate) fn final_commits(&self, partitions: &[TopicPartition]) -> Vec<OffsetCommit> {
        let unconfirmed = |(topic, number): &TopicPartition| {
            let own = self.partitions.get(&self.epoch(topic, *number)?)?;
            let offset = own.watermark.committable()?;
            (own.confirmed != Some(offset)).then(|| OffsetCommit::new(own, offset))
        };
        partitions.iter().filter_map(unconfirmed).collect()
    }

    /// Returns true if a commit is in flight. Another one has to wait: until the first is answered the client starts no newly
    /// assigned partition, and two commits may be applied in the wrong order.
    pub(crate) fn is_committing(&self, now: Instant) -> bool {
        self.commit_sent.is_some_and(|sent| now.saturating_duration_since(sent) < COMMIT_TIMEOUT)
    }

    /// Records that a commit was sent, or answered (`None`).
    pub(crate) fn set_commit_sent(&mut self, at: Option<Instant>) {
        self.commit_sent = at;
    }

    /// Records offsets that the broker has confirmed, with their metadata. Those of another log are ignored.
    pub(crate) fn commit_confirmed<'a>(
        &mut self,
        offsets: impl Iterator<Item = (&'a str, i32, u64, &'a str)>,
    ) {
        for (topic, number, offset, metadata) in offsets {
            if let Some(own) = self.current_mut(topic, number)
                && own.log.to_string() == metadata
            {
                own.confirmed = own.confirmed.max(Some(offset));
            }
        }
    }

    /// Records a failed commit: the next one sends its offsets again.
    pub(crate) fn commit_failed<'a>(&mut self, partitions: impl Iterator<Item = (&'a str, i32)>) {
        for (topic, number) in partitions {
            if let Some(own) = self.current_mut(topic, number) {
                own.sent_commit = None;
            }
        }
    }
}
