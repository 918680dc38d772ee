//! Partitions that are being revoked: [`Revocation`].

use std::time::{Duration, Instant};

use crate::state::partition::TopicPartition;

/// The partitions of a revocation in progress.
#[derive(Clone, Debug)]
pub(crate) struct Revocation {
    pub(crate) partitions: Vec<TopicPartition>,
    /// The deadline for handlers that are running.
    pub(crate) deadline: Instant,
    /// When the final commit was first and last sent.
    pub(crate) final_commit: Option<(Instant, Instant)>,
}

impl Revocation {
    pub(crate) fn new(partitions: Vec<TopicPartition>, limit: Duration, now: Instant) -> Self {
        Self { partitions, deadline: now + limit, final_commit: None }
    }
}
