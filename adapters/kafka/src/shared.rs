//! What the poll thread, the consumer and the acker share: [`Shared`].

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use onceward::{Delivery, Error, Message, Outgoing, SettleQueue, Settled, Settlement, Tag};
use tokio::sync::{Notify, oneshot};

use crate::burst::{Burst, Read};
use crate::config::TopicConfig;
use crate::partition::{Assigned, Held};
use crate::retry::Waiting;

/// The most deliveries of one batch.
const BATCH: usize = 500;

/// What the poll thread, the consumer and the acker share.
pub(crate) struct Shared {
    pub(crate) topics: TopicConfig,
    cluster: Arc<str>,
    state: Mutex<State>,
    /// The poll thread waits here: for room, and for the end of what is in flight.
    changed: Condvar,
    /// `receive` waits here.
    pub(crate) arrived: Notify,
    /// Grows with every change of the assignment.
    changes: AtomicU64,
}

#[derive(Default)]
pub(crate) struct State {
    /// By epoch.
    pub(crate) assigned: foldhash::HashMap<u64, Assigned>,
    /// The epoch of the present assignment of a partition.
    current: HashMap<Arc<str>, HashMap<i32, u64>>,
    ready: VecDeque<Ready>,
    ready_bytes: usize,
    delayed: Vec<(Instant, Ready)>,
    errors: VecDeque<Error>,
    last_epoch: u64,
    last_number: u64,
    /// A rebalance has happened.
    pub(crate) joined: bool,
    /// The assignment changed since the poll thread last looked.
    pub(crate) reassigned: bool,
    pub(crate) stop: bool,
    /// For tests: the client forgets all partitions, and nobody is told.
    #[cfg(test)]
    pub(crate) sabotaged: bool,
    /// The poll thread has ended.
    pub(crate) ended: bool,
    pub(crate) idle_questions: Vec<oneshot::Sender<Option<bool>>>,
}

struct Ready {
    epoch: u64,
    offset: u64,
    message: Message,
}

/// An offset to be committed.
pub(crate) struct ToCommit {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) offset: u64,
}

impl State {
    pub(crate) fn epoch(&self, topic: &str, partition: i32) -> Option<u64> {
        self.current.get(topic)?.get(&partition).copied()
    }

    fn unready(&mut self, epoch: u64) {
        self.ready.retain(|ready| ready.epoch != epoch);
        self.ready_bytes = self.ready.iter().map(|ready| ready.message.size()).sum();
        self.delayed.retain(|(_, ready)| ready.epoch != epoch);
    }

    /// Hands it out again before what came after it from the same partition.
    fn requeue(&mut self, again: Ready) {
        let later = |ready: &Ready| ready.epoch == again.epoch && ready.offset > again.offset;
        let place = self.ready.iter().position(later).unwrap_or(self.ready.len());
        self.ready_bytes += again.message.size();
        self.ready.insert(place, again);
    }

    fn settle(&mut self, tag: Tag, settlement: Settlement) -> Settled {
        let Some(assigned) = self.assigned.get_mut(&tag.epoch) else { return Settled::TooLate };
        let Some(Held { offset, message }) = assigned.held.remove(&tag.number) else {
            return Settled::TooLate;
        };
        let again = |message| Ready { epoch: tag.epoch, offset, message };
        let leaving = assigned.leaving;
        match settlement {
            Settlement::Ack | Settlement::Reject => {
                assigned.watermark.settled(offset);
            }
            // The partition's next owner has it.
            _ if leaving => {}
            Settlement::Retry { after } if !after.is_zero() => {
                self.delayed.push((Instant::now() + after, again(message)));
            }
            _ => self.requeue(again(message)),
        }
        Settled::Done
    }
}

impl Shared {
    pub(crate) fn new(topics: TopicConfig, cluster: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            topics,
            cluster,
            state: Mutex::default(),
            changed: Condvar::new(),
            arrived: Notify::new(),
            changes: AtomicU64::new(0),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the poll thread from its waits.
    pub(crate) fn change(&self) {
        self.changed.notify_all();
    }

    /// Another number whenever partitions have come or gone.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    pub(crate) fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Settled> {
        let mut state = self.lock();
        let settled: Vec<_> = batch.iter().map(|(tag, settlement)| state.settle(*tag, *settlement)).collect();
        drop(state);
        self.changed.notify_all();
        if batch.iter().any(|(_, settlement)| !matches!(settlement, Settlement::Ack | Settlement::Reject)) {
            self.arrived.notify_one();
        }
        settled
    }

    /// What there is to deliver, or when to look again.
    pub(crate) fn take(&self, queue: &Arc<SettleQueue>) -> Result<Vec<Delivery>, Option<Instant>> {
        let mut state = self.lock();
        let now = Instant::now();
        while let Some(due) = state.delayed.iter().position(|(at, _)| *at <= now) {
            let (_, again) = state.delayed.swap_remove(due);
            state.requeue(again);
        }
        let count = state.ready.len().min(BATCH);
        let mut deliveries = Vec::with_capacity(count);
        let State { ready, ready_bytes, assigned, last_number, .. } = &mut *state;
        for Ready { epoch, offset, message } in ready.drain(..count) {
            *ready_bytes = ready_bytes.saturating_sub(message.size());
            *last_number += 1;
            let tag = Tag { epoch, number: *last_number };
            if let Some(assigned) = assigned.get_mut(&epoch) {
                assigned.held.insert(tag.number, Held { offset, message: message.clone() });
                deliveries.push(Delivery { message, receipt: queue.receipt(tag) });
            }
        }
        let next = state.delayed.iter().map(|(at, _)| *at).min();
        drop(state);
        if deliveries.is_empty() {
            return Err(next);
        }
        self.changed.notify_all();
        Ok(deliveries)
    }

    pub(crate) fn take_error(&self) -> Option<Error> {
        self.lock().errors.pop_front()
    }

    /// Reports what a person must mend, with the next `receive`. The same one twice says no more than once.
    pub(crate) fn report(&self, error: Error) {
        let mut state = self.lock();
        if state.errors.back().is_none_or(|last| last.to_string() != error.to_string()) {
            state.errors.push_back(error);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Takes what was read in a burst, in its order. Records of an assignment that is over meanwhile are left to the next.
    pub(crate) fn polled(&self, burst: &mut Burst) {
        if burst.read.is_empty() {
            return;
        }
        let now = Instant::now();
        burst.bytes = 0;
        let mut guard = self.lock();
        let state = &mut *guard;
        let was_empty = state.ready.is_empty();
        let mut delays = false;
        for Read { epoch, offset, message, wait } in burst.read.drain(..) {
            let Some(assigned) = state.assigned.get_mut(&epoch) else { continue };
            if assigned.leaving || !assigned.watermark.delivered(offset) {
                continue;
            }
            assigned.quiet_since = now;
            assigned.stalls = 0;
            let ready = Ready { epoch, offset, message };
            if wait.is_zero() {
                state.ready_bytes += ready.message.size();
                state.ready.push_back(ready);
            } else {
                assigned.waits_until = Some(now + wait);
                state.delayed.push((now + wait, ready));
                delays = true;
            }
        }
        let first = was_empty && !state.ready.is_empty();
        drop(guard);
        // Who waits has to look at the clock.
        if first || delays {
            self.arrived.notify_one();
        }
    }

    /// The copies that go to retry topics instead of waiting here, each with its index in the batch.
    pub(crate) fn copies(&self, batch: &[(Tag, Settlement)], waiting: &Waiting) -> Vec<(usize, Outgoing)> {
        let state = self.lock();
        let copy = |(index, (tag, settlement)): (usize, &(Tag, Settlement))| {
            let Settlement::Retry { after } = settlement else { return None };
            let assigned = state.assigned.get(&tag.epoch).filter(|own| !own.leaving)?;
            let copy = waiting.copy(&assigned.held.get(&tag.number)?.message, *after)?;
            Some((index, copy))
        };
        batch.iter().enumerate().filter_map(copy).collect()
    }

    fn has_room(&self, state: &State) -> bool {
        state.ready.len() < self.topics.buffer_messages && state.ready_bytes < self.topics.buffer_bytes
    }

    /// Waits up to `limit` for room, or the order to stop. True if there is room.
    pub(crate) fn wait_for_room(&self, limit: Duration) -> bool {
        let full = |state: &mut State| !state.stop && !self.has_room(state);
        let (state, _) =
            self.changed.wait_timeout_while(self.lock(), limit, full).unwrap_or_else(PoisonError::into_inner);
        self.has_room(&state)
    }

    /// Half of the room is free: worth fetching again.
    pub(crate) fn is_half_empty(&self) -> bool {
        let state = self.lock();
        state.ready.len() <= self.topics.buffer_messages / 2
            && state.ready_bytes <= self.topics.buffer_bytes / 2
    }

    /// What the offsets of a topic count in. A topic that is deleted and made again has another id under the same name.
    pub(crate) fn incarnation(&self, topic: &str, ids: &HashMap<String, String>) -> Arc<str> {
        let id = ids.get(topic).map_or(topic, String::as_str);
        format!("{}/{id}", self.cluster).into()
    }

    /// `incarnations` has the ids of topics as far as they are known.
    pub(crate) fn assign(&self, partitions: &[(String, i32)], incarnations: &HashMap<String, String>) {
        let mut state = self.lock();
        self.changes.fetch_add(1, Ordering::SeqCst);
        state.joined = true;
        state.reassigned = true;
        for (topic, number) in partitions {
            state.last_epoch += 1;
            let epoch = state.last_epoch;
            let incarnation = self.incarnation(topic, incarnations);
            let topic: Arc<str> = topic.as_str().into();
            state.current.entry(Arc::clone(&topic)).or_default().insert(*number, epoch);
            let is_retry = self.topics.retry_topics.iter().any(|own| *own.name == *topic);
            let assigned = Assigned { is_retry, ..Assigned::new(topic, *number, incarnation) };
            state.assigned.insert(epoch, assigned);
        }
    }

    /// Partitions are taken away: hands out nothing of them any more and waits, up to `limit`, for what is in flight.
    /// What remains to be committed for them.
    pub(crate) fn drain(&self, partitions: &[(String, i32)], limit: Duration) -> Vec<ToCommit> {
        let mut state = self.lock();
        state.joined = true;
        let epochs: Vec<_> =
            partitions.iter().filter_map(|(topic, number)| state.epoch(topic, *number)).collect();
        for epoch in &epochs {
            state.unready(*epoch);
            if let Some(assigned) = state.assigned.get_mut(epoch) {
                assigned.leaving = true;
            }
        }
        let in_flight = |state: &mut State| {
            !state.stop
                && epochs
                    .iter()
                    .any(|epoch| state.assigned.get(epoch).is_some_and(|own| !own.held.is_empty()))
        };
        let (state, _) =
            self.changed.wait_timeout_while(state, limit, in_flight).unwrap_or_else(PoisonError::into_inner);
        epochs.iter().filter_map(|epoch| last_commit(state.assigned.get(epoch)?)).collect()
    }

    /// Partitions are gone: their deliveries settle nothing from now on.
    pub(crate) fn forget(&self, partitions: &[(String, i32)]) {
        let mut state = self.lock();
        self.changes.fetch_add(1, Ordering::SeqCst);
        state.reassigned = true;
        for (topic, number) in partitions {
            let epoch = state.current.get_mut(topic.as_str()).and_then(|numbers| numbers.remove(number));
            if let Some(epoch) = epoch {
                state.unready(epoch);
                state.assigned.remove(&epoch);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// As [`forget`](Self::forget), all of them.
    pub(crate) fn forget_all(&self) {
        let mut state = self.lock();
        self.changes.fetch_add(1, Ordering::SeqCst);
        let state = &mut *state;
        state.assigned.clear();
        state.current.clear();
        state.ready.clear();
        state.ready_bytes = 0;
        state.delayed.clear();
    }

    /// What is to be committed now; it counts as committed unless [`refused`](Self::refused) says otherwise.
    pub(crate) fn to_commit(&self) -> Vec<ToCommit> {
        let mut state = self.lock();
        let news = |assigned: &mut Assigned| {
            let news = to_commit(assigned)?;
            assigned.committed = Some((news.offset, Instant::now()));
            Some(news)
        };
        state.assigned.values_mut().filter(|assigned| !assigned.leaving).filter_map(news).collect()
    }

    /// The broker has these offsets.
    pub(crate) fn confirmed<'a>(&self, offsets: impl Iterator<Item = (&'a str, i32, u64)>) {
        let mut state = self.lock();
        for (topic, number, offset) in offsets {
            if let Some(epoch) = state.epoch(topic, number)
                && let Some(assigned) = state.assigned.get_mut(&epoch)
            {
                assigned.confirmed = assigned.confirmed.max(Some(offset));
            }
        }
    }

    /// A commit was refused: what it said is said again with the next one.
    pub(crate) fn refused<'a>(&self, partitions: impl Iterator<Item = (&'a str, i32)>) {
        let mut state = self.lock();
        for (topic, number) in partitions {
            if let Some(epoch) = state.epoch(topic, number)
                && let Some(assigned) = state.assigned.get_mut(&epoch)
            {
                assigned.committed = None;
            }
        }
    }

    /// True if nothing waits to be handed out.
    pub(crate) fn nothing_waits(&self) -> bool {
        let state = self.lock();
        state.ready.is_empty() && state.delayed.is_empty()
    }
}

fn to_commit(assigned: &Assigned) -> Option<ToCommit> {
    let offset = assigned.to_commit()?;
    Some(ToCommit { topic: Arc::clone(&assigned.topic), partition: assigned.number, offset })
}

/// As [`to_commit`], and what was sent but not confirmed once more: there is no later chance.
fn last_commit(assigned: &Assigned) -> Option<ToCommit> {
    let offset = assigned.watermark.committable().filter(|offset| assigned.confirmed != Some(*offset))?;
    Some(ToCommit { topic: Arc::clone(&assigned.topic), partition: assigned.number, offset })
}
