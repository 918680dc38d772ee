//! Partitions that are assigned and not read, since it is not known yet where they begin: [`Pending`].
//!
//! The group's offset alone does not say that: its topic may have been recreated, or its log truncated. While a partition has no
//! leader, or the cluster does not answer, the client has it paused; it is looked at again and again, and the others go on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;

use crate::poll::rebalance::Hooked;
use crate::start_offsets as begin;
use crate::state::Shared;

/// How long the cluster may take to answer one question. The poll thread waits meanwhile.
const ANSWER: Duration = Duration::from_secs(2);
/// When they are looked at again, at first and at most.
const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(2);
/// After so many looks it is no matter of a moment.
const MANY: u32 = 3;

/// Partitions of which it is not known yet where they begin.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    partitions: BTreeSet<(String, i32)>,
    /// How often they were looked at, and when the next look is due.
    looks: u32,
    due: Option<Instant>,
    reason: Option<String>,
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    pub(crate) fn named(&self) -> impl Iterator<Item = (Arc<str>, i32)> {
        self.partitions.iter().map(|(topic, number)| (Arc::from(topic.as_str()), *number))
    }

    /// True if one of these was among them.
    pub(crate) fn remove(&mut self, partitions: &[(String, i32)]) -> bool {
        let before = self.partitions.len();
        for own in partitions {
            self.partitions.remove(own);
        }
        self.partitions.len() < before
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// These were looked at in vain, at `now`.
    fn put_off(&mut self, partitions: Vec<(String, i32)>, reason: Option<&KafkaError>, now: Instant) {
        if self.partitions.is_empty() {
            self.looks = 0;
        }
        self.partitions.extend(partitions);
        self.looks = self.looks.saturating_add(1);
        self.due = Some(now + (SOON * self.looks).min(LATE));
        self.reason = reason.map(ToString::to_string);
    }

    /// What is to be said of partitions that wait for longer than a moment.
    pub(crate) fn trouble(&self) -> Option<String> {
        if self.looks < MANY {
            return None;
        }
        let (topic, number) = self.partitions.first()?;
        let reason =
            self.reason.as_deref().unwrap_or("a partition has no leader, or its topic cannot be described");
        let count = self.partitions.len();
        Some(format!(
            "{count} partitions are not read yet ({topic} {number} is one): {reason}; it is tried again"
        ))
    }
}

impl Shared {
    /// These partitions are not read until it is known where they begin.
    pub(crate) fn put_off(&self, partitions: Vec<(String, i32)>, reason: Option<&KafkaError>) {
        let mut state = self.lock();
        if partitions.is_empty() {
            return;
        }
        state.pending.put_off(partitions, reason, Instant::now());
        let trouble = state.pending.trouble().filter(|_| state.pending.looks == MANY);
        drop(state);
        if let Some(trouble) = trouble {
            tracing::warn!("{trouble}");
        }
    }
}

/// Looks again where partitions begin, if that is due. False if the consumer must not go on; what a person must do is reported.
pub(crate) fn advance<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, shared: &Shared) -> bool {
    let (list, answer) = {
        let state = shared.lock();
        let is_due = state.pending.due.is_none_or(|due| due <= Instant::now());
        // What is being given up is no more of our concern, and the client fetches nothing until it is.
        if state.pending.is_empty() || state.leaving.is_some() || !is_due {
            return true;
        }
        let mut list = TopicPartitionList::new();
        for (topic, number) in &state.pending.partitions {
            list.add_partition(topic, *number);
        }
        // A slow cluster gets more time once in a while.
        let answer = if state.pending.looks.is_multiple_of(MANY) { begin::ANSWER } else { ANSWER };
        (list, answer)
    };
    match consumer.context().begin(consumer, &list, answer) {
        Ok(begun) => {
            shared.begin(&begun.begins);
            shared.put_off(begun.pending, begun.reason.as_ref());
            true
        }
        Err(error) => {
            shared.report(error);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_get_rarer_and_what_stays_is_told() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        let named = || vec![("orders".to_owned(), 3)];
        assert!(pending.is_empty() && pending.trouble().is_none());
        for look in 1..100 {
            pending.put_off(named(), None, now);
            let wait = pending.due.map(|due| due - now);
            assert_eq!(wait, Some((SOON * look).min(LATE)));
            assert_eq!(pending.trouble().is_some(), look >= MANY);
        }
        assert!(pending.remove(&named()) && !pending.remove(&named()) && pending.trouble().is_none());
        pending.put_off(named(), None, now);
        assert_eq!(pending.looks, 1, "another time begins anew");
    }
}
