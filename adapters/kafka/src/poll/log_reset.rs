//! A partition whose log is another one than it was, under a running consumer: its topic was recreated, or its log truncated.
//!
//! Whoever notices (an offset below one that was delivered, another topic id, a log that is told for a second to end before what
//! was delivered) marks the partition as doubtful: nothing more of it is taken or committed. The overseer looks what it is now, and
//! the poll thread gives it a new epoch, in which the whole log is delivered. Settlements of the old epoch are too late.

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind};
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::log_id::Stamp;
use crate::poll::rebalance::Hooked;
use crate::state::assignment::Begin;
use crate::state::{Shared, State};

/// How long a seek may take. The poll thread waits meanwhile; what fails is repeated.
const SEEK: Duration = Duration::from_millis(500);

/// How long a broker may not know that a topic is gone. What is reported later is so.
const GONE: Duration = Duration::from_secs(60);

/// What a doubtful partition is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) epoch: u64,
    /// The topic's id; `None` from brokers older than 2.8.
    pub(crate) id: Option<String>,
    /// The log's first offset and its end.
    pub(crate) low: u64,
    pub(crate) end: u64,
}

/// Gives the partitions that were looked at a new epoch, and has them read from the beginning. False if the consumer must not
/// go on; what a person must do is reported.
pub(crate) fn apply<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, shared: &Shared) -> bool {
    let findings = std::mem::take(&mut shared.lock().findings);
    for finding in findings {
        if let Err(error) = one(consumer, shared, &finding) {
            shared.report(error);
            return false;
        }
    }
    let seeks = std::mem::take(&mut shared.lock().seeks);
    for (epoch, offset) in seeks {
        let place = {
            let state = shared.lock();
            state.assigned.get(&epoch).map(|own| (Arc::clone(&own.topic), own.number))
        };
        let Some((topic, partition)) = place else { continue };
        match consumer.seek(&topic, partition, offset, SEEK) {
            Ok(()) => {
                if let Some(own) = shared.lock().assigned.get_mut(&epoch) {
                    own.doubtful = false;
                }
            }
            Err(error) => {
                tracing::debug!(%error, topic = &*topic, partition, "a partition cannot be read anew yet; tried again");
                shared.lock().seeks.push((epoch, offset));
            }
        }
    }
    true
}

fn one<C: ClientContext>(
    consumer: &BaseConsumer<Hooked<C>>,
    shared: &Shared,
    finding: &Finding,
) -> Result<(), Error> {
    let Some(change) = shared.change_of(finding) else { return Ok(()) };
    let Begin { topic, partition, stamp, .. } = &change.begin;
    shared.health.reset();
    tracing::warn!(
        topic,
        partition,
        delivered_up_to = change.next,
        log_start = finding.low,
        log_end = finding.end,
        "the {}: its log is read from the start, and what is still in flight of the old one is not committed",
        change.kind.what()
    );
    let mut from = finding.low;
    if let Some(starts) = &consumer.context().starts {
        if change.kind == Kind::Truncated {
            return Err(truncated(topic, *partition));
        }
        let incarnation = stamp.incarnation(&shared.cluster, topic).into();
        let number = u32::try_from(*partition).unwrap_or_default();
        from = starts.start(&incarnation, number, finding.end)?.unwrap_or(from).max(from);
    }
    shared.renew(finding.epoch, &Begin { from: Some(from), ..change.begin });
    Ok(())
}

/// The log of a partition was truncated, and positions in a database count in what it was: a person has to decide.
pub(crate) fn truncated(topic: &str, partition: i32) -> Error {
    let what = "records that were processed are gone from the log, and others stand in their place or will: the positions in the \
                database count in the old log. Find out what the topic holds, remove the positions of this group, and start \
                again: the log is read from its start";
    Error::new(ErrorKind::Corrupt, format!("go on with topic {topic}, partition {partition}"), what)
}

/// Why the log is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Recreated,
    Truncated,
}

impl Kind {
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Recreated => "topic was deleted and created again",
            Self::Truncated => "partition's log was truncated",
        }
    }
}

struct Change {
    kind: Kind,
    begin: Begin,
    next: Option<u64>,
}

impl State {
    /// True if a topic of this id was deleted just now, so that who reports it may be behind.
    pub(crate) fn is_gone(&self, id: &str) -> bool {
        self.gone.get(id).is_some_and(|since| since.elapsed() < GONE)
    }
}

impl Shared {
    fn change_of(&self, finding: &Finding) -> Option<Change> {
        let state = self.lock();
        let own = state.assigned.get(&finding.epoch).filter(|own| !own.leaving)?;
        let is_other = |id: &String| own.stamp.id.as_ref().is_some_and(|before| before != id);
        let (kind, stamp) = match finding.id.as_ref().filter(|id| is_other(id)) {
            Some(id) => (Kind::Recreated, Stamp { id: Some(id.clone()), cuts: 0 }),
            None => (Kind::Truncated, Stamp { cuts: own.stamp.cuts + 1, ..own.stamp.clone() }),
        };
        let (topic, partition) = (own.topic.to_string(), own.number);
        let begin = Begin { topic, partition, stamp, ..Begin::default() };
        Some(Change { kind, begin, next: own.watermark.next() })
    }

    /// The partition of `epoch` starts again. It stays doubtful until the client reads at its beginning.
    pub(crate) fn renew(&self, epoch: u64, begin: &Begin) {
        let mut state = self.lock();
        self.changed();
        state.unready(epoch);
        state.copies_of(epoch);
        let Some(before) = state.assigned.remove(&epoch) else { return };
        if before.stamp.id != begin.stamp.id {
            state.gone.extend(before.stamp.id.map(|id| (id, Instant::now())));
        }
        state.notice(epoch);
        let mut assigned = self.assigned_at(begin);
        assigned.doubtful = true;
        if let Some(from) = begin.from {
            // It is committed at once: the group's offset is of the old log still.
            assigned.watermark.passed(from, from);
        }
        let new = state.add(assigned);
        if begin.from.is_some() {
            state.seeks.push((new, begin.offset()));
        }
    }
}
