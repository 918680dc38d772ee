//! Partitions come and go, and how far they are committed: the part of [`Shared`] that the client's callbacks use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Offset;

use crate::log_id::Stamp;
use crate::state::Shared;
use crate::state::partition::Assigned;

/// How long the client may take to report what became of a commit; it repeats one for which there is no coordinator for as long
/// as a session lasts.
const UNANSWERED: Duration = Duration::from_secs(60);

/// A partition that is assigned: which log it is, and where it begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Begin {
    pub topic: String,
    pub partition: i32,
    pub stamp: Stamp,
    /// The first offset that is wanted, where that is known.
    pub from: Option<u64>,
    /// The group has no offset: `auto.offset.reset` says where the client starts.
    pub by_policy: bool,
}

impl Begin {
    pub(crate) fn is(&self, topic: &str, partition: i32) -> bool {
        self.topic == topic && self.partition == partition
    }

    /// Where the client is to read first.
    pub(crate) fn offset(&self) -> Offset {
        match self.from.filter(|_| !self.by_policy) {
            Some(from) => Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX)),
            None => Offset::Invalid,
        }
    }
}

/// An offset to be committed, with the stamp of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToCommit {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) offset: u64,
    pub(crate) stamp: String,
}

impl Shared {
    pub(crate) fn assign(&self, partitions: &[Begin]) {
        let mut state = self.lock();
        self.changed();
        state.joined = true;
        state.reassigned = true;
        state.trouble = None;
        for begin in partitions {
            let assigned = self.assigned_at(begin);
            state.add(assigned);
        }
        drop(state);
        self.health.set_up();
        self.asked.notify_all();
    }

    pub(crate) fn assigned_at(&self, begin: &Begin) -> Assigned {
        let topic: Arc<str> = begin.topic.as_str().into();
        let incarnation = begin.stamp.incarnation(&self.cluster, &topic).into();
        let is_retry = self.topics.retry_topics.iter().any(|own| *own.name == *topic);
        let stamp = begin.stamp.clone();
        Assigned { is_retry, start: begin.from, ..Assigned::new(topic, begin.partition, stamp, incarnation) }
    }

    /// As [`assign`](Self::assign), for partitions that the client already has: it seeks to their start offsets.
    pub(crate) fn begin(&self, partitions: &[Begin]) {
        let mut state = self.lock();
        self.changed();
        for begin in partitions {
            let named = (begin.topic.clone(), begin.partition);
            if !state.pending.remove(&[named]) {
                continue;
            }
            let assigned = Assigned { doubtful: true, ..self.assigned_at(begin) };
            let epoch = state.add(assigned);
            state.seeks.push((epoch, begin.offset()));
        }
        drop(state);
        self.asked.notify_all();
    }

    /// True if nothing is under way that could bring records, beside what the partitions at hand have: a member that has not
    /// joined yet, or joins again, or does not know where a partition begins, has more to come.
    pub(crate) fn is_settled(&self) -> bool {
        let is_steady = {
            let state = self.lock();
            state.joined && state.leaving.is_none() && state.pending.is_empty()
        };
        is_steady && self.nothing_waits()
    }

    /// True if nothing waits to be handed out, or for its copy to be confirmed.
    pub(crate) fn nothing_waits(&self) -> bool {
        let state = self.lock();
        state.copying == 0
            && state.delayed.is_empty()
            && state.assigned.values().all(|own| own.ready.is_empty() && !own.doubtful)
    }

    /// Partitions are being revoked: hands out nothing of them any more, and says so.
    pub(crate) fn leave(&self, partitions: &[(String, i32)]) {
        let mut state = self.lock();
        state.flow_changed = true;
        state.pending.remove(partitions);
        for (topic, number) in partitions {
            let Some(epoch) = state.epoch(topic, *number) else { continue };
            state.unready(epoch);
            if let Some(own) = state.assigned.get_mut(&epoch) {
                own.leaving = true;
            }
            state.notice(epoch);
        }
    }

    /// True if nothing of these partitions is out with the pipeline.
    pub(crate) fn are_drained(&self, partitions: &[(String, i32)]) -> bool {
        let state = self.lock();
        let mut own =
            partitions.iter().filter_map(|(topic, number)| state.assigned.get(&state.epoch(topic, *number)?));
        own.all(|own| own.held.is_empty())
    }

    /// What remains to be committed for partitions that go, and what was sent but not confirmed once more: there is no later
    /// chance.
    pub(crate) fn last_commits(&self, partitions: &[(String, i32)]) -> Vec<ToCommit> {
        let state = self.lock();
        let last = |(topic, number): &(String, i32)| {
            let own = state.assigned.get(&state.epoch(topic, *number)?)?;
            let offset = own.watermark.committable()?;
            (own.confirmed != Some(offset)).then(|| commit_of(own, offset))
        };
        partitions.iter().filter_map(last).collect()
    }

    /// Partitions are gone: their deliveries settle nothing from now on.
    pub(crate) fn forget(&self, partitions: &[(String, i32)]) {
        let mut state = self.lock();
        self.changed();
        state.reassigned = true;
        // Each revocation is followed by an assignment, which may be of nothing.
        state.joined = false;
        state.pending.remove(partitions);
        for (topic, number) in partitions {
            let epoch = state.current.get_mut(topic.as_str()).and_then(|numbers| numbers.remove(number));
            if let Some(epoch) = epoch {
                state.unready(epoch);
                state.copies_of(epoch);
                if state.assigned.remove(&epoch).is_some_and(|own| !own.leaving) {
                    state.notice(epoch);
                }
            }
        }
        drop(state);
        self.change();
    }

    /// As [`forget`](Self::forget), all of them.
    pub(crate) fn forget_all(&self) {
        let mut state = self.lock();
        self.changed();
        state.clear();
    }

    /// True if a commit is under way. Another one has to wait: while one is not answered the client starts no partition that was
    /// just assigned, and of two the older one may come last.
    pub(crate) fn is_committing(&self) -> bool {
        self.lock().committing.is_some_and(|sent| sent.elapsed() < UNANSWERED)
    }

    /// What is to be committed now; it counts as committed unless [`refused`](Self::refused) says otherwise.
    pub(crate) fn to_commit(&self) -> Vec<ToCommit> {
        let mut state = self.lock();
        let news = |own: &mut Assigned| {
            let offset = own.to_commit()?;
            own.committed = Some((offset, Instant::now()));
            Some(commit_of(own, offset))
        };
        // Of a log that is perhaps gone nothing more is committed.
        state.assigned.values_mut().filter(|own| !own.doubtful).filter_map(news).collect()
    }

    /// The broker has these offsets. One of another log than the present says nothing of this.
    pub(crate) fn confirmed<'a>(&self, offsets: impl Iterator<Item = (&'a str, i32, u64, &'a str)>) {
        let mut state = self.lock();
        for (topic, number, offset, stamp) in offsets {
            if let Some(epoch) = state.epoch(topic, number)
                && let Some(own) = state.assigned.get_mut(&epoch)
                && own.stamp.to_string() == stamp
            {
                own.confirmed = own.confirmed.max(Some(offset));
            }
        }
    }

    /// A commit was refused: what it said is said again with the next one.
    pub(crate) fn refused<'a>(&self, partitions: impl Iterator<Item = (&'a str, i32)>) {
        let mut state = self.lock();
        for (topic, number) in partitions {
            if let Some(epoch) = state.epoch(topic, number)
                && let Some(own) = state.assigned.get_mut(&epoch)
            {
                own.committed = None;
            }
        }
    }
}

fn commit_of(own: &Assigned, offset: u64) -> ToCommit {
    let topic = Arc::clone(&own.topic);
    ToCommit { topic, partition: own.number, offset, stamp: own.stamp.to_string() }
}
