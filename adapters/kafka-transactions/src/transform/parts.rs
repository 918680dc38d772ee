//! How the records of a transaction are sent, so that a refusal by the broker tells which of them it is about: [`Parts`].
//!
//! The broker takes or refuses a batch of the client's as a whole, and which records share one is up to the client. Records
//! are therefore sent in groups: before a group of a topic begins, the one before is confirmed. A refused group of several
//! records says only that smaller ones are needed.

use std::collections::HashMap;

use onceward::{Error, Outgoing};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use onceward_kafka::internal::error;

/// The most bytes of a batch, unless the client is told otherwise: a refused group of more bytes was several batches.
const BATCH: usize = 1_000_000;
/// About as many bytes as a record has beside key, value and headers.
const FRAME: usize = 100;
/// So often a batch is sent again in other groups. Whatever the broker says: each time the groups of a topic are half as
/// large as before, or one more record is known.
const MOST: u32 = 64;

/// The groups of a transaction, and what earlier ones have taught.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// The most bytes of a group, for topics that have refused a larger one.
    limits: HashMap<String, usize>,
    /// Records of the batch from this index on are sent alone. Those before were accepted.
    alone_from: Option<usize>,
    /// How often the batch was sent in other groups.
    again: u32,
    groups: Vec<Group>,
    /// The group of each topic to which more may be added.
    open: HashMap<String, usize>,
}

#[derive(Debug)]
struct Group {
    topic: String,
    /// The record, by its index in the batch, that the first one was made for.
    first: usize,
    records: usize,
    bytes: usize,
}

/// What a refusal means.
#[derive(Debug)]
pub(super) enum Refused {
    /// The broker will never take what was made for the record with this index.
    One(usize, Error),
    /// It is not known which record it is about: they are to be sent again, in smaller groups.
    Several,
}

impl Parts {
    /// A transaction begins.
    pub(super) fn begin(&mut self) {
        self.groups.clear();
        self.open.clear();
    }

    /// True if what was sent before has to be confirmed before `outgoing`, made for the record `index`, is sent.
    pub(super) fn begins_group(&self, index: usize, outgoing: &Outgoing) -> bool {
        let Some(open) = self.open.get(&outgoing.destination).map(|number| &self.groups[*number]) else {
            return false;
        };
        let limit = self.limits.get(&outgoing.destination);
        self.alone_from.is_some_and(|from| index >= from)
            || limit.is_some_and(|limit| open.bytes + size(outgoing) > *limit)
    }

    /// All that was sent is confirmed.
    pub(super) fn confirmed(&mut self) {
        self.open.clear();
    }

    /// The number of the group in which `outgoing` is sent.
    pub(super) fn add(&mut self, index: usize, outgoing: &Outgoing) -> usize {
        let topic = &outgoing.destination;
        let number = match self.open.get(topic) {
            Some(number) => *number,
            None => {
                self.groups.push(Group { topic: topic.clone(), first: index, records: 0, bytes: 0 });
                self.open.insert(topic.clone(), self.groups.len() - 1);
                self.groups.len() - 1
            }
        };
        let group = &mut self.groups[number];
        (group.records, group.bytes) = (group.records + 1, group.bytes + size(outgoing));
        number
    }

    /// What is to be done after the broker has refused these groups and nothing of the transaction happened; `None` if none was
    /// refused, or sending again does not help.
    pub(super) fn refused(&mut self, refusals: &[(usize, Code)]) -> Option<Refused> {
        let groups = &self.groups;
        let refusals: Vec<_> =
            refusals.iter().filter_map(|(number, code)| Some((groups.get(*number)?, *code))).collect();
        if let Some((group, code)) = refusals.iter().find(|(group, _)| group.records == 1) {
            if self.alone_from.is_some() {
                self.alone_from = Some(group.first);
            }
            let operation = format!("produce to topic {}", group.topic);
            let error = error::kafka(operation, KafkaError::MessageProduction(*code));
            return Some(Refused::One(group.first, error));
        }
        if refusals.is_empty() || self.again >= MOST {
            return None;
        }
        self.again += 1;
        for (group, code) in refusals {
            if is_size(code) {
                let half = group.bytes.min(BATCH) / 2;
                let limit = self.limits.entry(group.topic.clone()).or_insert(half);
                *limit = (*limit).min(half);
            } else {
                self.alone_from = Some(self.alone_from.map_or(group.first, |from| from.min(group.first)));
            }
        }
        Some(Refused::Several)
    }

    /// The batch is over. How large the groups of a topic may be is kept in mind.
    pub(super) fn over(&mut self) {
        (self.alone_from, self.again) = (None, 0);
    }
}

fn size(outgoing: &Outgoing) -> usize {
    let headers: usize = outgoing.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    FRAME + outgoing.payload.len() + outgoing.order_key.as_ref().map_or(0, |key| key.len()) + headers
}

fn is_size(code: Code) -> bool {
    matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge)
}

/// True for what the broker says about a record itself, today and ever.
pub(super) fn is_of_the_record(code: Code) -> bool {
    is_size(code) || matches!(code, Code::InvalidRecord | Code::InvalidTimestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(bytes: usize) -> Outgoing {
        Outgoing {
            destination: "out".to_owned(),
            payload: vec![0; bytes - FRAME].into(),
            ..Outgoing::default()
        }
    }

    /// What a broker says that takes groups of `limit` bytes and no record of those in `bad`: as a rule of the model, the first
    /// refusal ends the transaction. The number of transactions until all is said.
    fn sent(parts: &mut Parts, sizes: &[usize], limit: usize, bad: &[usize]) -> (Vec<usize>, u32) {
        let (mut dead, mut transactions) = (Vec::new(), 0);
        loop {
            transactions += 1;
            assert!(transactions < 1_000, "it never ends");
            parts.begin();
            let mut groups: Vec<Vec<usize>> = Vec::new();
            for (index, bytes) in sizes.iter().enumerate().filter(|(index, _)| !dead.contains(index)) {
                let outgoing = outgoing(*bytes);
                if parts.begins_group(index, &outgoing) {
                    parts.confirmed();
                }
                let number = parts.add(index, &outgoing);
                groups.resize(number + 1, Vec::new());
                groups[number].push(index);
            }
            let refusal = groups.iter().enumerate().find_map(|(number, group)| {
                let bytes: usize = group.iter().map(|index| sizes[*index]).sum();
                if bytes > limit {
                    return Some((number, Code::MessageSizeTooLarge));
                }
                group.iter().any(|index| bad.contains(index)).then_some((number, Code::InvalidRecord))
            });
            match parts.refused(&refusal.into_iter().collect::<Vec<_>>()) {
                None => {
                    assert!(refusal.is_none(), "it was given up");
                    parts.over();
                    return (dead, transactions);
                }
                Some(Refused::One(index, _)) => dead.push(index),
                Some(Refused::Several) => {}
            }
        }
    }

    #[test]
    fn a_topic_with_a_small_limit_is_learned_once_and_loses_nothing() {
        let mut parts = Parts::default();
        let sizes = [1_000; 500];
        let (dead, transactions) = sent(&mut parts, &sizes, 10_000, &[]);
        assert!(dead.is_empty(), "{dead:?}");
        assert!(transactions < 10, "{transactions}");
        assert_eq!(sent(&mut parts, &sizes, 10_000, &[]), (vec![], 1));
    }

    #[test]
    fn a_record_that_is_too_large_is_found_among_others_and_the_others_go() {
        let mut sizes = [1_000; 300];
        (sizes[0], sizes[150], sizes[299]) = (50_000, 30_000, 11_000);
        let (mut dead, transactions) = sent(&mut Parts::default(), &sizes, 10_000, &[]);
        dead.sort_unstable();
        assert_eq!(dead, [0, 150, 299]);
        assert!(transactions < 20, "{transactions}");
    }

    #[test]
    fn records_that_the_broker_does_not_take_are_found_one_by_one_and_the_others_go() {
        let bad: Vec<_> = (0..300).step_by(7).collect();
        let (dead, transactions) = sent(&mut Parts::default(), &[1_000; 300], usize::MAX, &bad);
        assert_eq!(dead, bad);
        assert!(usize::try_from(transactions).unwrap() <= bad.len() + 2, "{transactions}");
    }

    #[test]
    fn a_broker_that_refuses_whatever_is_sent_is_not_asked_without_end() {
        let mut parts = Parts::default();
        let mut times = 0;
        loop {
            parts.begin();
            for index in 0..3 {
                parts.add(index, &outgoing(1_000));
            }
            match parts.refused(&[(0, Code::InvalidRecord)]) {
                None => break,
                Some(refused) => assert!(matches!(refused, Refused::Several)),
            }
            times += 1;
        }
        assert_eq!(times, MOST);
    }
}
