//! What the poll thread, the consumer and the acker share: [`Shared`].

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use onceward::telemetry::SourceHealth;
use onceward::{Delivery, Error, Notice, Settled, Settlement, Tag};
use rdkafka::Offset;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::burst::{Burst, Read};
use crate::config::TopicConfig;
use crate::leaving::Leaving;
use crate::partition::{Assigned, Held, Ready};
use crate::pending::Pending;
use crate::reset::Finding;
use crate::retention::Gap;

/// The most deliveries of one batch.
const BATCH: usize = 500;
/// How many of one partition are handed out before it is another one's turn.
const TURN: usize = 32;
/// Longer waits than this one cannot be told from "for ever".
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What the poll thread, the consumer and the acker share.
pub(crate) struct Shared {
    pub(crate) topics: TopicConfig,
    pub(crate) cluster: Arc<str>,
    pub(crate) health: Arc<SourceHealth>,
    state: Mutex<State>,
    /// The poll thread waits here for room.
    changed: Condvar,
    /// The overseer waits here.
    pub(crate) asked: Condvar,
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
    pub(crate) current: HashMap<Arc<str>, HashMap<i32, u64>>,
    /// The epochs that have something to hand out, in the order of their turns.
    turns: VecDeque<u64>,
    /// How many wait to be handed out, and their bytes, without those of paused partitions.
    buffered: usize,
    buffered_bytes: usize,
    pub(crate) delayed: Vec<(Instant, Ready)>,
    /// How many copies are on their way to retry topics.
    pub(crate) copying: usize,
    errors: VecDeque<Error>,
    pub(crate) last_epoch: u64,
    last_number: u64,
    /// The group has assigned what this member gets, and has not taken it away since.
    pub(crate) joined: bool,
    /// The assignment changed since the poll thread last looked.
    pub(crate) reassigned: bool,
    /// What is wanted of single partitions changed since the poll thread last looked.
    pub(crate) flow_changed: bool,
    /// Partitions that are being revoked.
    pub(crate) leaving: Option<Leaving>,
    /// The client is being closed: nothing is waited for any more.
    pub(crate) closing: bool,
    /// What keeps the member from its partitions, beside the network.
    pub(crate) trouble: Option<String>,
    /// Partitions whose log has to be looked at, now.
    pub(crate) doubts: bool,
    pub(crate) findings: Vec<Finding>,
    /// Where the client is to read partitions that it has already, by epoch: their log is another one, or it is known late where
    /// they begin.
    pub(crate) seeks: Vec<(u64, Offset)>,
    /// Partitions of which it is not known yet where they begin.
    pub(crate) pending: Pending,
    /// When the commit was sent that is under way, if one is.
    pub(crate) committing: Option<Instant>,
    pub(crate) gaps: Vec<Gap>,
    /// Ids of deleted topics, and since when that is known. A broker that does not know yet may still report them for a while.
    pub(crate) gone: HashMap<String, Instant>,
    pub(crate) notices: Option<mpsc::UnboundedSender<Notice>>,
    pub(crate) stop: bool,
    /// For tests: the client forgets all partitions, and nobody is told.
    #[cfg(test)]
    pub(crate) sabotaged: bool,
    /// The poll thread has ended.
    pub(crate) ended: bool,
    pub(crate) idle_questions: Vec<oneshot::Sender<Option<bool>>>,
}

impl State {
    pub(crate) fn epoch(&self, topic: &str, partition: i32) -> Option<u64> {
        self.current.get(topic)?.get(&partition).copied()
    }

    /// A partition is assigned, under a new epoch.
    pub(crate) fn add(&mut self, assigned: Assigned) -> u64 {
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        self.current.entry(Arc::clone(&assigned.topic)).or_default().insert(assigned.number, epoch);
        self.assigned.insert(epoch, assigned);
        epoch
    }

    /// Hands out nothing more of an assignment.
    pub(crate) fn unready(&mut self, epoch: u64) {
        self.uncount(epoch);
        if let Some(own) = self.assigned.get_mut(&epoch) {
            (own.queued, own.ready_bytes, own.delayed) = (false, 0, 0);
            own.ready.clear();
        }
        self.turns.retain(|own| *own != epoch);
        self.delayed.retain(|(_, ready)| ready.epoch != epoch);
    }

    /// What waits of an assignment counts against the buffer no more.
    fn uncount(&mut self, epoch: u64) {
        if let Some(own) = self.assigned.get(&epoch).filter(|own| own.counts()) {
            self.buffered -= own.ready.len();
            self.buffered_bytes -= own.ready_bytes;
        }
    }

    /// Takes back what the pipeline wants of a partition. True if that is news.
    pub(crate) fn set_paused(&mut self, epoch: u64, paused: bool) -> bool {
        if self.assigned.get(&epoch).is_none_or(|own| own.paused == paused) {
            return false;
        }
        self.uncount(epoch);
        let Some(own) = self.assigned.get_mut(&epoch) else { return false };
        own.paused = paused;
        if paused {
            own.queued = false;
            self.turns.retain(|own| *own != epoch);
        } else {
            self.buffered += own.ready.len();
            self.buffered_bytes += own.ready_bytes;
            if !own.ready.is_empty() {
                own.queued = true;
                self.turns.push_back(epoch);
            }
        }
        self.flow_changed = true;
        true
    }

    /// Has a message handed out in its partition's turn, before what came after it.
    fn enqueue(&mut self, ready: Ready) {
        let Some(own) = self.assigned.get_mut(&ready.epoch) else { return };
        if own.counts() {
            self.buffered += 1;
            self.buffered_bytes += ready.message.size();
            if !own.queued {
                own.queued = true;
                self.turns.push_back(ready.epoch);
            }
        }
        own.add(ready);
    }

    fn settle(&mut self, tag: Tag, settlement: Settlement) -> Settled {
        let Some(own) = self.assigned.get_mut(&tag.epoch) else { return Settled::TooLate };
        let Some(Held { offset, message, copying }) = own.held.remove(&tag.number) else {
            return Settled::TooLate;
        };
        self.copying -= usize::from(copying);
        let again = Ready { epoch: tag.epoch, offset, message };
        match settlement {
            Settlement::Ack | Settlement::Reject => {
                own.watermark.settled(offset);
            }
            // The partition's next owner has it.
            _ if own.leaving => {}
            Settlement::Retry { after } if !after.is_zero() => {
                own.delayed += 1;
                self.delayed.push((Instant::now() + after.min(LONGEST), again));
            }
            _ => self.enqueue(again),
        }
        Settled::Done
    }

    pub(crate) fn notice(&self, epoch: u64) {
        if let Some(notices) = &self.notices {
            // Whoever listened may be gone.
            let _ = notices.send(Notice::Leaving { epoch });
        }
    }

    /// How many copies are on their way to retry topics.
    pub(crate) fn copies(&self) -> usize {
        self.copying
    }

    /// The copies of an assignment that ends settle nothing.
    pub(crate) fn copies_of(&mut self, epoch: u64) {
        if let Some(own) = self.assigned.get(&epoch) {
            self.copying -= own.held.values().filter(|held| held.copying).count();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.assigned.clear();
        self.current.clear();
        self.turns.clear();
        (self.buffered, self.buffered_bytes, self.copying) = (0, 0, 0);
        self.delayed.clear();
        self.leaving = None;
        self.findings.clear();
        self.seeks.clear();
        self.gaps.clear();
        self.pending.clear();
        (self.joined, self.committing) = (false, None);
    }
}

impl Shared {
    pub(crate) fn new(topics: TopicConfig, cluster: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            topics,
            cluster,
            health: Arc::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            asked: Condvar::new(),
            arrived: Notify::new(),
            changes: AtomicU64::new(0),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the threads from their waits.
    pub(crate) fn change(&self) {
        self.changed.notify_all();
        self.asked.notify_all();
    }

    /// Another number whenever partitions have come or gone.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Partitions have come or gone.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
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

    /// What there is to deliver, the partitions in turn, or when to look again.
    pub(crate) fn take(&self) -> Result<Vec<Delivery>, Option<Instant>> {
        let mut state = self.lock();
        let now = Instant::now();
        while let Some(due) = state.delayed.iter().position(|(at, _)| *at <= now) {
            let (_, again) = state.delayed.swap_remove(due);
            if let Some(own) = state.assigned.get_mut(&again.epoch) {
                own.delayed -= 1;
            }
            state.enqueue(again);
        }
        let mut deliveries = Vec::with_capacity(state.buffered.min(BATCH));
        let State { turns, buffered, buffered_bytes, assigned, last_number, .. } = &mut *state;
        while deliveries.len() < BATCH
            && let Some(epoch) = turns.pop_front()
        {
            let Some(own) = assigned.get_mut(&epoch) else { continue };
            let count = own.ready.len().min(TURN).min(BATCH - deliveries.len());
            for Ready { offset, message, .. } in own.ready.drain(..count) {
                let size = message.size();
                own.ready_bytes -= size;
                *buffered -= 1;
                *buffered_bytes -= size;
                *last_number += 1;
                let tag = Tag { epoch, number: *last_number };
                own.held.insert(tag.number, Held { offset, message: message.clone(), copying: false });
                deliveries.push(Delivery { message, tag });
            }
            own.queued = !own.ready.is_empty();
            if own.queued {
                turns.push_back(epoch);
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
        self.health.received();
        let now = Instant::now();
        burst.bytes = 0;
        let mut guard = self.lock();
        let state = &mut *guard;
        let was_empty = state.turns.is_empty();
        let mut wakes = false;
        for Read { epoch, offset, message, wait } in burst.read.drain(..) {
            let Some(own) = state.assigned.get_mut(&epoch) else { continue };
            // What is not taken while in doubt is read again afterwards.
            if own.leaving || own.doubtful {
                continue;
            }
            let next = own.next();
            // The client went back, by itself: the log ended before.
            if next.is_some_and(|next| offset < next) {
                own.doubtful = true;
                state.doubts = true;
                self.asked.notify_all();
                continue;
            }
            if let Some(from) = next
                && from < offset
            {
                let (topic, partition) = (Arc::clone(&own.topic), own.number);
                state.gaps.push(Gap { topic, partition, from, to: offset });
            }
            own.watermark.delivered(offset);
            own.quiet_since = now;
            own.stalls = 0;
            let ready = Ready { epoch, offset, message };
            if wait.is_zero() {
                state.enqueue(ready);
            } else {
                own.waits_until = Some(now + wait);
                own.delayed += 1;
                state.delayed.push((now + wait, ready));
                wakes = true;
            }
        }
        let first = was_empty && !state.turns.is_empty();
        drop(guard);
        // Who waits has to look at the clock.
        if first || wakes {
            self.arrived.notify_one();
        }
    }

    fn has_room(&self, state: &State) -> bool {
        state.buffered < self.topics.buffer_messages && state.buffered_bytes < self.topics.buffer_bytes
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
        state.buffered <= self.topics.buffer_messages / 2
            && state.buffered_bytes <= self.topics.buffer_bytes / 2
    }
}
