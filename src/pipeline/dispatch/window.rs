//! Limits on deliveries that are held or waiting, and the partitions paused because of them: [`Window`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};
use tokio::time::Instant;

use crate::consumer::FlowControl;
use crate::pipeline::config::PipelineConfig;
use crate::pipeline::work::{Footprint, InFlight, Work};
use crate::telemetry::{IntakePause, IntakePauses};

/// Batches received within this time count as one.
const BATCH_INTERVAL: Duration = Duration::from_millis(250);

/// How long a partition of which too many wait may keep others from being taken in before it is paused. Most go on by then, and
/// a pause costs what the client has fetched ahead: Kafka's fetches it again.
const PAUSE_AFTER: Duration = Duration::from_millis(100);

/// Messages and their bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    messages: usize,
    bytes: usize,
}

impl Load {
    /// True if one of the two has reached `most`.
    fn reaches(self, most: Self) -> bool {
        self.messages >= most.messages || self.bytes >= most.bytes
    }

    /// So many eighths of it.
    fn eighths(self, count: usize) -> Self {
        let part = |of: usize| of.saturating_mul(count).div_ceil(8);
        Self { messages: part(self.messages), bytes: part(self.bytes) }
    }

    fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.messages -= 1;
        self.bytes -= bytes;
    }
}

#[derive(Debug, Default)]
struct Partition {
    held: usize,
    waiting: Load,
    paused: bool,
}

/// Counts what is held. Deliveries that wait (behind their lane, behind a copy, for a retry, for an answer of the store) have
/// a limit of their own, so that they cannot take the place of those that can run. A partition of which too many wait is
/// paused at the source, where the source can do that.
pub(super) struct Window {
    flow: Option<Arc<dyn FlowControl>>,
    max_runnable: usize,
    max_bytes: usize,
    max_waiting: usize,
    max_waiting_per_partition: usize,
    held: Load,
    /// Bytes of memory that finding the keys of large messages takes.
    lent: usize,
    waiting: Load,
    partitions: HashMap<u64, Partition>,
    /// Partitions of which too many wait and that are not paused, and since when; none where partitions cannot be paused. One
    /// stays until an eighth of its share is free: retries that come and go are no progress.
    overfull: Vec<(Instant, u64)>,
    /// When each batch was received and how much of it is held, from the oldest of which something is.
    batches: VecDeque<(Instant, usize)>,
    /// The number of the first of `batches`.
    first_batch: u64,
}

impl Window {
    pub(super) fn new(config: &PipelineConfig, flow: Option<Arc<dyn FlowControl>>) -> Self {
        Self {
            flow,
            max_runnable: config.max_in_flight,
            max_bytes: config.max_in_flight_bytes,
            max_waiting: config.max_waiting(),
            max_waiting_per_partition: config.max_waiting_per_partition(),
            held: Load::default(),
            lent: 0,
            waiting: Load::default(),
            partitions: HashMap::new(),
            overfull: Vec::new(),
            batches: VecDeque::new(),
            first_batch: 0,
        }
    }

    /// What is taken from now on was received at `now`. It joins a batch received shortly before: a delivery that is held
    /// for hours keeps the entries of all later batches, which must not grow with the throughput.
    pub(super) fn begin_batch(&mut self, now: Instant) {
        self.drop_settled_batches();
        if self.batches.back().is_none_or(|(received, _)| now - *received >= BATCH_INTERVAL) {
            self.batches.push_back((now, 0));
        }
    }

    /// Takes deliveries of the batch that was begun.
    pub(super) fn take(&mut self, works: &mut [Work]) {
        if let Some((_, held)) = self.batches.back_mut() {
            *held += works.len();
        }
        let batch = self.first_batch + (self.batches.len() as u64).saturating_sub(1);
        for same in works.chunk_by_mut(|one, next| one.receipt.tag().epoch == next.receipt.tag().epoch) {
            for work in &mut *same {
                work.batch = batch;
                self.held.add(work.size);
            }
            if let Some(first) = same.first() {
                self.partitions.entry(first.receipt.tag().epoch).or_default().held += same.len();
            }
        }
    }

    /// Counts memory that is needed for a while, besides that of the deliveries.
    pub(super) fn lend(&mut self, bytes: usize) {
        self.lent = self.lent.saturating_add(bytes);
    }

    pub(super) fn take_back(&mut self, bytes: usize) {
        self.lent = self.lent.saturating_sub(bytes);
    }

    /// True if there is room for so many bytes more.
    pub(super) fn could_lend(&self, bytes: usize) -> bool {
        self.held_bytes().saturating_add(bytes) <= self.max_bytes
    }

    /// Deliveries that do not wait are settled.
    pub(super) fn let_go(&mut self, footprints: impl Iterator<Item = Footprint>) {
        // Most were received together.
        let mut alike: Option<(Footprint, usize)> = None;
        for footprint in footprints {
            self.held.remove(footprint.size);
            match &mut alike {
                Some((first, count)) if (first.epoch, first.batch) == (footprint.epoch, footprint.batch) => {
                    *count += 1;
                }
                _ => {
                    alike.replace((footprint, 1)).into_iter().for_each(|alike| self.note_let_go(alike));
                }
            }
        }
        alike.into_iter().for_each(|alike| self.note_let_go(alike));
    }

    /// So many deliveries of a batch and partition are settled.
    fn note_let_go(&mut self, (Footprint { epoch, batch, .. }, count): (Footprint, usize)) {
        let place = usize::try_from(batch - self.first_batch).ok();
        if let Some((_, held)) = place.and_then(|place| self.batches.get_mut(place)) {
            *held -= count;
        }
        self.drop_settled_batches();
        if let Some(partition) = self.partitions.get_mut(&epoch) {
            partition.held -= count;
            if partition.held == 0 {
                if partition.paused {
                    self.flow.iter().for_each(|flow| flow.resume(epoch));
                }
                self.partitions.remove(&epoch);
                self.overfull.retain(|(_, of)| *of != epoch);
            }
        }
    }

    fn drop_settled_batches(&mut self) {
        while self.batches.pop_front_if(|(_, held)| *held == 0).is_some() {
            self.first_batch += 1;
        }
    }

    /// When the oldest delivery that is held was received.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.batches.front().map(|(received, _)| *received)
    }

    /// The delivery waits from now on.
    pub(super) fn wait(&mut self, work: &mut InFlight) {
        if std::mem::replace(&mut work.waits, true) {
            return;
        }
        self.waiting.add(work.size);
        let epoch = work.receipt.tag().epoch;
        let share = self.share();
        let Some(partition) = self.partitions.get_mut(&epoch) else { return };
        partition.waiting.add(work.size);
        let can_pause = self.flow.is_some() && !partition.paused;
        if can_pause && partition.waiting.reaches(share) && !self.overfull.iter().any(|(_, of)| *of == epoch)
        {
            self.overfull.push((Instant::now(), epoch));
        }
    }

    /// Pauses the partitions of which too many have been waiting for long, so that the others can go on.
    pub(super) fn pause_overfull(&mut self) {
        let Some(flow) = self.flow.clone().filter(|_| !self.overfull.is_empty()) else { return };
        let (now, share) = (Instant::now(), self.share());
        for (_, epoch) in self.overfull.extract_if(.., |(since, _)| now - *since >= PAUSE_AFTER) {
            // Its share grows when another partition is done.
            let partition =
                self.partitions.get_mut(&epoch).filter(|own| own.waiting.reaches(share.eighths(7)));
            let Some(partition) = partition else { continue };
            partition.paused = true;
            tracing::debug!(
                waiting = partition.waiting.messages,
                "partition paused: too many of its deliveries wait"
            );
            flow.pause(epoch);
        }
    }

    /// When [`pause_overfull`](Self::pause_overfull) has something to do.
    pub(super) fn pauses_at(&self) -> Option<Instant> {
        self.overfull.iter().map(|(since, _)| *since + PAUSE_AFTER).min()
    }

    /// The delivery does not wait any more.
    pub(super) fn wake(&mut self, work: &mut InFlight) {
        if !std::mem::replace(&mut work.waits, false) {
            return;
        }
        self.waiting.remove(work.size);
        let epoch = work.receipt.tag().epoch;
        let share = self.share();
        let Some(partition) = self.partitions.get_mut(&epoch) else { return };
        partition.waiting.remove(work.size);
        let waiting = partition.waiting;
        if partition.paused && !waiting.reaches(share.eighths(4)) {
            partition.paused = false;
            self.flow.iter().for_each(|flow| flow.resume(epoch));
        }
        if !self.overfull.is_empty() && !waiting.reaches(share.eighths(7)) {
            self.overfull.retain(|(_, of)| *of != epoch);
        }
    }

    /// How much of one partition may wait: the partitions share the limits.
    fn share(&self) -> Load {
        let partitions = self.partitions.len().max(1);
        let messages = self.max_waiting_per_partition.min(self.max_waiting / partitions).max(1);
        Load { messages, bytes: (self.max_bytes / 2 / partitions).max(1) }
    }

    /// True if a partition that is not paused has reached its share.
    fn is_overfull(&self) -> bool {
        let share = self.share();
        let waiting = self.overfull.iter().filter_map(|(_, epoch)| self.partitions.get(epoch));
        waiting.into_iter().any(|partition| partition.waiting.reaches(share))
    }

    /// The limits that are reached; without any, more may be taken in. `unflushed`: settlements on their way to the broker.
    pub(super) fn full(&self, unflushed: isize) -> IntakePauses {
        let runnable = (self.held.messages - self.waiting.messages).saturating_add_signed(unflushed);
        let mut full = IntakePauses::default();
        full.set(IntakePause::InFlight, runnable >= self.max_runnable);
        full.set(IntakePause::Waiting, self.is_overfull() || self.is_full_of_waiting());
        full.set(IntakePause::Bytes, self.held_bytes() >= self.max_bytes && self.held.messages > 0);
        full
    }

    /// True if what waits keeps others from being taken in.
    pub(super) fn is_full_of_waiting(&self) -> bool {
        // Where partitions are paused, this limit is only for what was under way when they were.
        let most = if self.flow.is_some() { self.max_waiting.saturating_mul(2) } else { self.max_waiting };
        self.waiting.messages >= most
            || (self.held.bytes >= self.max_bytes && self.waiting.bytes >= self.max_bytes / 2)
    }

    pub(super) fn held(&self) -> usize {
        self.held.messages
    }

    /// With the memory that is lent.
    pub(super) fn held_bytes(&self) -> usize {
        self.held.bytes.saturating_add(self.lent)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.messages
    }

    /// True if something of this epoch is held.
    pub(super) fn holds_of(&self, epoch: u64) -> bool {
        self.partitions.contains_key(&epoch)
    }
}
