//! Delivery and settlement: records wait in a bounded buffer, are handed out in turns, and settle their offsets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::adapter::{Delivery, Settled, Settlement, Tag};
use onceward::{Message, Outgoing};

use crate::retention::OffsetGap;
use crate::state::ConsumerState;
use crate::state::partition::{InFlightRecord, ReadyRecord};

/// The most messages of one batch.
const BATCH: usize = 500;
/// The most messages of one partition before the next partition's turn.
const TURN: usize = 32;
/// Delays are capped here, so that due times can be represented.
const MAX_DELAY: Duration = Duration::from_secs(365 * 24 * 3600);
/// The most copies being published to retry topics; further records wait in this process.
const MAX_COPIES: usize = 1000;

/// A record that was read from the client.
pub(crate) struct PolledRecord {
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    pub(crate) message: Message,
    /// The remaining wait of a copy in a retry topic.
    pub(crate) wait: Duration,
}

/// A copy to be published to a retry topic, the delivery it is for, and its delay.
pub(crate) struct RetryCopy {
    pub(crate) tag: Tag,
    pub(crate) after: Duration,
    pub(crate) outgoing: Outgoing,
}

impl ConsumerState {
    /// Takes records that were read, in their order. Records of an assignment that has ended meanwhile are dropped: the next
    /// owner of the partition reads them.
    pub(crate) fn polled(&mut self, records: impl IntoIterator<Item = PolledRecord>, now: Instant) {
        let was_empty = self.turns.is_empty();
        for PolledRecord { epoch, offset, message, wait } in records {
            let Some(own) = self.partitions.get_mut(&epoch) else { continue };
            // A doubtful partition is read again once the doubt is resolved.
            if own.leaving || own.doubtful {
                continue;
            }
            let next = own.next();
            // The client has reset by itself: the log ended before the requested offset.
            if next.is_some_and(|next| offset < next) {
                own.doubtful = true;
                self.request_log_check();
                continue;
            }
            if let Some(from) = next
                && from < offset
            {
                let (topic, partition) = own.id();
                self.gaps.push(OffsetGap { topic, partition, from, to: offset });
            }
            own.watermark.delivered(offset);
            own.quiet_since = now;
            own.stalls = 0;
            let ready = ReadyRecord { epoch, offset, message };
            if wait.is_zero() {
                self.enqueue(ready);
            } else {
                own.delayed_until = Some(now + wait);
                own.delayed += 1;
                self.delayed.push((now + wait, ready));
                self.signals.receive = true;
            }
        }
        self.signals.receive |= was_empty && !self.turns.is_empty();
    }

    /// Takes the gaps between records since the last call.
    pub(crate) fn take_gaps(&mut self) -> Vec<OffsetGap> {
        std::mem::take(&mut self.gaps)
    }

    /// Returns the next batch, partitions in turns.
    ///
    /// # Errors
    /// Nothing is ready; the next due time, if a record is delayed.
    pub(crate) fn take(&mut self, now: Instant) -> Result<Vec<Delivery>, Option<Instant>> {
        self.enqueue_due(now);
        let mut batch = Vec::with_capacity(self.buffered.min(BATCH));
        while batch.len() < BATCH
            && let Some(epoch) = self.turns.pop_front()
        {
            let Some(own) = self.partitions.get_mut(&epoch) else { continue };
            let count = own.ready.len().min(TURN).min(BATCH - batch.len());
            for ReadyRecord { offset, message, .. } in own.ready.drain(..count) {
                let size = message.size();
                own.ready_bytes -= size;
                self.buffered -= 1;
                self.buffered_bytes -= size;
                self.last_tag_number += 1;
                let tag = Tag { epoch, number: self.last_tag_number };
                let in_flight = InFlightRecord { offset, message: message.clone(), copying: false };
                own.in_flight.insert(tag.number, in_flight);
                batch.push(Delivery { message, tag });
            }
            own.queued = !own.ready.is_empty();
            if own.queued {
                self.turns.push_back(epoch);
            }
        }
        if batch.is_empty() {
            return Err(self.delayed.iter().map(|(at, _)| *at).min());
        }
        self.signals.poll = true;
        Ok(batch)
    }

    fn enqueue_due(&mut self, now: Instant) {
        while let Some(due) = self.delayed.iter().position(|(at, _)| *at <= now) {
            let (_, record) = self.delayed.swap_remove(due);
            if let Some(own) = self.partitions.get_mut(&record.epoch) {
                own.delayed -= 1;
            }
            self.enqueue(record);
        }
    }

    /// Settles deliveries; the results are in their order.
    pub(crate) fn settle(&mut self, batch: &[(Tag, Settlement)], now: Instant) -> Vec<Settled> {
        let settled = batch.iter().map(|(tag, settlement)| self.settle_one(*tag, *settlement, now)).collect();
        self.signals.poll = true;
        let is_final = |settlement: &Settlement| matches!(settlement, Settlement::Ack | Settlement::Reject);
        self.signals.receive |= batch.iter().any(|(_, settlement)| !is_final(settlement));
        settled
    }

    fn settle_one(&mut self, tag: Tag, settlement: Settlement, now: Instant) -> Settled {
        let Some(own) = self.partitions.get_mut(&tag.epoch) else { return Settled::TooLate };
        let Some(InFlightRecord { offset, message, copying }) = own.in_flight.remove(&tag.number) else {
            return Settled::TooLate;
        };
        self.copying -= usize::from(copying);
        let record = ReadyRecord { epoch: tag.epoch, offset, message };
        match settlement {
            Settlement::Ack | Settlement::Reject => {
                own.watermark.settled(offset);
            }
            // The partition's next owner delivers it.
            _ if own.leaving => {}
            Settlement::Retry { after } if !after.is_zero() => {
                own.delayed += 1;
                self.delayed.push((now + after.min(MAX_DELAY), record));
            }
            _ => self.enqueue(record),
        }
        Settled::Done
    }

    /// Selects deliveries to be copied to retry topics instead of waiting here, each with its index in the batch. `to_copy`
    /// returns the copy of a message, if there is a topic for its delay. A delivery is copied once, however often it is settled:
    /// the second time its copy is `None`.
    pub(crate) fn start_copies(
        &mut self,
        batch: &[(Tag, Settlement)],
        to_copy: impl Fn(&Message, Duration) -> Option<Outgoing>,
    ) -> Vec<(usize, Option<RetryCopy>)> {
        let mut copies = Vec::new();
        for (index, (tag, settlement)) in batch.iter().enumerate() {
            let Settlement::Retry { after } = *settlement else { continue };
            let own = self.partitions.get_mut(&tag.epoch).filter(|own| !own.leaving);
            let Some(record) = own.and_then(|own| own.in_flight.get_mut(&tag.number)) else { continue };
            if record.copying {
                copies.push((index, None));
                continue;
            }
            if self.copying >= MAX_COPIES {
                continue;
            }
            if let Some(outgoing) = to_copy(&record.message, after) {
                record.copying = true;
                self.copying += 1;
                copies.push((index, Some(RetryCopy { tag: *tag, after, outgoing })));
            }
        }
        copies
    }

    /// Returns the number of copies being published to retry topics.
    pub(crate) fn copies_in_flight(&self) -> usize {
        self.copying
    }

    /// Forgets the copies of an assignment that ends: they settle nothing.
    pub(super) fn forget_copies(&mut self, epoch: u64) {
        if let Some(own) = self.partitions.get(&epoch) {
            self.copying -= own.in_flight.values().filter(|record| record.copying).count();
        }
    }

    /// Adds a record to its partition's turn, before records with larger offsets.
    fn enqueue(&mut self, record: ReadyRecord) {
        let Some(own) = self.partitions.get_mut(&record.epoch) else { return };
        if own.counts() {
            self.buffered += 1;
            self.buffered_bytes += record.message.size();
            if !own.queued {
                own.queued = true;
                self.turns.push_back(record.epoch);
            }
        }
        own.insert_ready(record);
    }

    /// Drops the records of an assignment that were not handed out.
    pub(super) fn discard_ready(&mut self, epoch: u64) {
        self.uncount(epoch);
        if let Some(own) = self.partitions.get_mut(&epoch) {
            (own.queued, own.ready_bytes, own.delayed) = (false, 0, 0);
            own.ready.clear();
        }
        self.turns.retain(|own| *own != epoch);
        self.delayed.retain(|(_, record)| record.epoch != epoch);
    }

    /// Removes the ready records of an assignment from the buffer's count.
    fn uncount(&mut self, epoch: u64) {
        if let Some(own) = self.partitions.get(&epoch).filter(|own| own.counts()) {
            self.buffered -= own.ready.len();
            self.buffered_bytes -= own.ready_bytes;
        }
    }

    /// Pauses or resumes a partition for the pipeline.
    pub(crate) fn set_paused(&mut self, epoch: u64, paused: bool) {
        if self.partitions.get(&epoch).is_none_or(|own| own.paused == paused) {
            return;
        }
        self.uncount(epoch);
        let Some(own) = self.partitions.get_mut(&epoch) else { return };
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
        (self.signals.poll, self.signals.monitor) = (true, true);
        self.signals.receive |= !paused;
    }

    /// Returns true if the buffer has room for another record.
    pub(crate) fn has_room(&self) -> bool {
        self.buffered < self.topics.buffer_messages && self.buffered_bytes < self.topics.buffer_bytes
    }

    /// Returns true if the buffer is at most half full, so that resuming paused partitions is worthwhile.
    pub(crate) fn is_half_empty(&self) -> bool {
        self.buffered <= self.topics.buffer_messages / 2
            && self.buffered_bytes <= self.topics.buffer_bytes / 2
    }

    /// Returns the partitions that the client must not fetch for a while: paused by the pipeline, being revoked, pending, with
    /// more delayed records than the buffer holds, or with a copy that is not due yet.
    pub(crate) fn waiting_partitions(&self, now: Instant) -> std::collections::HashSet<(Arc<str>, i32)> {
        let waits = |own: &&crate::state::partition::AssignedPartition| {
            let is_full = own.delayed >= self.topics.buffer_messages;
            own.paused || own.leaving || is_full || own.delayed_until.is_some_and(|until| until > now)
        };
        let assigned = self.partitions.values().filter(waits).map(|own| own.id());
        assigned.chain(self.pending.iter().cloned()).collect()
    }
}
