//! Sends the records of a transaction in groups, so that a rejection identifies the record: [`SendGroups`].
//!
//! The broker accepts or rejects a batch of the client as a whole, and the client decides which records share a batch. Records
//! are therefore sent in groups: the previous group of a topic is confirmed before the next one starts. A rejected group of
//! several records is split into smaller ones.

use std::collections::HashMap;

use onceward::{Error, Outgoing};
use onceward_kafka::internal::classify;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// The client's default limit of a batch, in bytes: a larger rejected group consisted of several batches.
const BATCH_BYTES: usize = 1_000_000;
/// Approximate overhead of a record beside key, value and headers, in bytes.
const RECORD_OVERHEAD: usize = 100;
/// How often a batch is sent again in other groups. Each time the groups of a topic are halved, or one more record is
/// identified.
const MAX_SPLITS: u32 = 64;

/// The groups of a transaction, and the limits learned from earlier ones.
#[derive(Debug, Default)]
pub(super) struct SendGroups {
    /// The most bytes of a group, for topics that have rejected a larger one.
    limits: HashMap<String, usize>,
    /// Records of the batch from this index on are sent alone; those before were accepted.
    alone_from: Option<usize>,
    /// How often the batch was sent again in other groups.
    splits: u32,
    groups: Vec<SendGroup>,
    /// The number of each topic's current group, to which more records may be added.
    open: HashMap<String, usize>,
    /// The number of the group that was added to last, if it is open. Most records go to the same topic as the one before.
    last: Option<usize>,
}

#[derive(Debug)]
struct SendGroup {
    topic: String,
    /// The most bytes of it, if its topic has rejected a larger one.
    limit: Option<usize>,
    /// The index in the batch of the record that the first one was produced for.
    first: usize,
    records: usize,
    bytes: usize,
}

/// The conclusion from a rejection.
#[derive(Debug)]
pub(super) enum Rejection {
    /// The broker will never accept what was produced for the record with this index.
    Record(usize, Error),
    /// The record is not identified yet: the batch has to be sent again, in smaller groups.
    Split,
}

impl SendGroups {
    /// Starts a batch. The limits of topics are kept.
    pub(super) fn begin_batch(&mut self) {
        (self.alone_from, self.splits) = (None, 0);
    }

    /// Starts a transaction.
    pub(super) fn begin(&mut self) {
        self.groups.clear();
        self.confirmed();
    }

    /// Records that everything sent is confirmed.
    pub(super) fn confirmed(&mut self) {
        self.open.clear();
        self.last = None;
    }

    /// Returns the number of the topic's current group.
    fn current(&self, topic: &str) -> Option<usize> {
        let is_of_topic = |number: &usize| self.groups[*number].topic == topic;
        self.last.filter(is_of_topic).or_else(|| self.open.get(topic).copied())
    }

    /// Returns true if earlier records must be confirmed before `outgoing`, produced for the record `index`, is sent.
    pub(super) fn starts_group(&self, index: usize, outgoing: &Outgoing) -> bool {
        let Some(open) = self.current(&outgoing.destination).map(|number| &self.groups[number]) else {
            return false;
        };
        self.alone_from.is_some_and(|from| index >= from)
            || open.limit.is_some_and(|limit| open.bytes + record_size(outgoing) > limit)
    }

    /// Adds `outgoing` to a group. Returns the group's number.
    pub(super) fn add(&mut self, index: usize, outgoing: &Outgoing) -> usize {
        let topic = &outgoing.destination;
        let number = self.current(topic).unwrap_or_else(|| {
            let (topic, limit) = (topic.clone(), self.limits.get(topic).copied());
            self.open.insert(topic.clone(), self.groups.len());
            self.groups.push(SendGroup { topic, limit, first: index, records: 0, bytes: 0 });
            self.groups.len() - 1
        });
        self.last = Some(number);
        let group = &mut self.groups[number];
        (group.records, group.bytes) = (group.records + 1, group.bytes + record_size(outgoing));
        number
    }

    /// Evaluates the rejected groups of an aborted transaction; `None` if no group was rejected, or sending again does not help.
    pub(super) fn evaluate(&mut self, rejected: &[(usize, Code)]) -> Option<Rejection> {
        let groups = &self.groups;
        let rejected: Vec<_> =
            rejected.iter().filter_map(|(number, code)| Some((groups.get(*number)?, *code))).collect();
        if let Some((group, code)) = rejected.iter().find(|(group, _)| group.records == 1) {
            if self.alone_from.is_some() {
                self.alone_from = Some(group.first);
            }
            let operation = format!("produce to topic {}", group.topic);
            let error = classify(operation, KafkaError::MessageProduction(*code));
            return Some(Rejection::Record(group.first, error));
        }
        if rejected.is_empty() || self.splits >= MAX_SPLITS {
            return None;
        }
        self.splits += 1;
        for (group, code) in rejected {
            if is_too_large(code) {
                let half = group.bytes.min(BATCH_BYTES) / 2;
                let limit = self.limits.entry(group.topic.clone()).or_insert(half);
                *limit = (*limit).min(half);
            } else {
                self.alone_from = Some(self.alone_from.map_or(group.first, |from| from.min(group.first)));
            }
        }
        Some(Rejection::Split)
    }
}

fn record_size(outgoing: &Outgoing) -> usize {
    let headers: usize = outgoing.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    RECORD_OVERHEAD
        + outgoing.payload.len()
        + outgoing.order_key.as_ref().map_or(0, |key| key.len())
        + headers
}

fn is_too_large(code: Code) -> bool {
    matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge)
}

/// Returns true for a permanent rejection of a record.
pub(super) fn is_record_rejection(code: Code) -> bool {
    is_too_large(code) || matches!(code, Code::InvalidRecord | Code::InvalidTimestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(bytes: usize) -> Outgoing {
        Outgoing {
            destination: "out".to_owned(),
            payload: vec![0; bytes - RECORD_OVERHEAD].into(),
            ..Outgoing::default()
        }
    }

    /// A model of a broker that accepts groups of `limit` bytes and rejects the records in `bad`; the first rejection ends the
    /// transaction. Returns the rejected records, and the number of transactions until the rest is accepted.
    fn send_all(groups: &mut SendGroups, sizes: &[usize], limit: usize, bad: &[usize]) -> (Vec<usize>, u32) {
        let (mut dead, mut transactions) = (Vec::new(), 0);
        groups.begin_batch();
        loop {
            transactions += 1;
            assert!(transactions < 1_000, "it does not end");
            groups.begin();
            let mut sent: Vec<Vec<usize>> = Vec::new();
            for (index, bytes) in sizes.iter().enumerate().filter(|(index, _)| !dead.contains(index)) {
                let outgoing = outgoing(*bytes);
                if groups.starts_group(index, &outgoing) {
                    groups.confirmed();
                }
                let number = groups.add(index, &outgoing);
                sent.resize(number + 1, Vec::new());
                sent[number].push(index);
            }
            let rejection = sent.iter().enumerate().find_map(|(number, group)| {
                let bytes: usize = group.iter().map(|index| sizes[*index]).sum();
                if bytes > limit {
                    return Some((number, Code::MessageSizeTooLarge));
                }
                group.iter().any(|index| bad.contains(index)).then_some((number, Code::InvalidRecord))
            });
            match groups.evaluate(&rejection.into_iter().collect::<Vec<_>>()) {
                None => {
                    assert!(rejection.is_none(), "it was given up");
                    return (dead, transactions);
                }
                Some(Rejection::Record(index, _)) => dead.push(index),
                Some(Rejection::Split) => {}
            }
        }
    }

    #[test]
    fn the_limit_of_a_topic_is_learned_once_and_nothing_is_lost() {
        let mut groups = SendGroups::default();
        let sizes = [1_000; 500];
        let (dead, transactions) = send_all(&mut groups, &sizes, 10_000, &[]);
        assert!(dead.is_empty(), "{dead:?}");
        assert!(transactions < 10, "{transactions}");
        assert_eq!(send_all(&mut groups, &sizes, 10_000, &[]), (vec![], 1));
    }

    #[test]
    fn a_record_that_is_too_large_is_found_and_the_others_are_sent() {
        let mut sizes = [1_000; 300];
        (sizes[0], sizes[150], sizes[299]) = (50_000, 30_000, 11_000);
        let (mut dead, transactions) = send_all(&mut SendGroups::default(), &sizes, 10_000, &[]);
        dead.sort_unstable();
        assert_eq!(dead, [0, 150, 299]);
        assert!(transactions < 20, "{transactions}");
    }

    #[test]
    fn rejected_records_are_found_one_by_one_and_the_others_are_sent() {
        let bad: Vec<_> = (0..300).step_by(7).collect();
        let (dead, transactions) = send_all(&mut SendGroups::default(), &[1_000; 300], usize::MAX, &bad);
        assert_eq!(dead, bad);
        assert!(usize::try_from(transactions).unwrap() <= bad.len() + 2, "{transactions}");
    }

    #[test]
    fn a_broker_that_rejects_everything_is_not_tried_forever() {
        let mut groups = SendGroups::default();
        let mut times = 0;
        loop {
            groups.begin();
            for index in 0..3 {
                groups.add(index, &outgoing(1_000));
            }
            match groups.evaluate(&[(0, Code::InvalidRecord)]) {
                None => break,
                Some(rejection) => assert!(matches!(rejection, Rejection::Split)),
            }
            times += 1;
        }
        assert_eq!(times, MAX_SPLITS);
    }
}
