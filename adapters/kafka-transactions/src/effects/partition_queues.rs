//! Queues of deliveries, by assignment of a partition: [`PartitionQueues`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use onceward::adapter::Delivery;
use tokio::time::Instant;

use crate::effects::partition_worker::LONG_TRANSACTION;

/// The most records of one part, at first. After a part with as many it is doubled if the part took less than [`SHORT_PART`], and
/// halved if it took longer than a [transaction should](LONG_TRANSACTION): a commit costs little for each of many records, and a transaction
/// with slow handlers holds its locks.
const FIRST_PART: usize = 500;
const SMALLEST_PART: usize = 32;
const LARGEST_PART: usize = 2000;
const SHORT_PART: Duration = Duration::from_millis(100);

/// The most deliveries that wait or are in flight. The client delivers thousands of records of one partition before the next
/// one: with a lower limit partitions would wait for each other.
pub(super) const MAX_DELIVERIES: usize = 20_000;

/// A partition with so many waiting deliveries is paused if none of its parts ends for [`PAUSE_AFTER`], and resumed at the lower
/// number: a stopped partition leaves the room to the others. One that goes on is not paused, because the client would discard what
/// it has fetched ahead, and fetch it again.
const PAUSE_AT: usize = 2000;
const RESUME_AT: usize = 500;
const PAUSE_AFTER: Duration = Duration::from_millis(500);

/// Nor does one that goes on keep half of the room for longer than this.
const LARGE: usize = MAX_DELIVERIES / 2;
const LARGE_FOR: Duration = Duration::from_secs(1);

/// Deliveries by partition, in order. At most one part of each partition is in flight, so that all deliveries before a part
/// are done.
#[derive(Debug, Default)]
pub(super) struct PartitionQueues {
    by_epoch: BTreeMap<u64, PartitionQueue>,
    /// The number and bytes of the deliveries that wait or are in flight.
    held: usize,
    held_bytes: usize,
}

#[derive(Debug)]
struct PartitionQueue {
    waiting: VecDeque<Delivery>,
    in_flight: usize,
    in_flight_bytes: usize,
    /// When the part in flight, or the last one, started.
    part_started: Instant,
    /// The most records of the next part.
    largest_part: usize,
    /// A part was not processed: later deliveries must not be processed either.
    closed: bool,
    /// The partition is paused.
    paused: bool,
    /// Since when [`PAUSE_AT`] deliveries wait and no part has ended, unless it is paused.
    stopped_since: Option<Instant>,
    /// Since when [`LARGE`] deliveries wait, unless it is paused.
    large_since: Option<Instant>,
}

impl PartitionQueues {
    /// Returns true if there is room for another delivery.
    pub(super) fn have_room(&self, records: usize, bytes: usize) -> bool {
        self.held < records && self.held_bytes < bytes
    }

    /// Adds deliveries. Returns those of [closed](Self::close) assignments.
    #[must_use]
    pub(super) fn push(&mut self, deliveries: Vec<Delivery>) -> Vec<Delivery> {
        let mut refused = Vec::new();
        for delivery in deliveries {
            let queue = self.by_epoch.entry(delivery.tag.epoch).or_default();
            if queue.closed {
                refused.push(delivery);
            } else {
                self.held += 1;
                self.held_bytes += delivery.message.size();
                queue.waiting.push_back(delivery);
            }
        }
        refused
    }

    /// Takes the next part of each partition without a part in flight.
    pub(super) fn take_parts(&mut self, now: Instant) -> Vec<Vec<Delivery>> {
        let mut parts = Vec::new();
        for queue in self.by_epoch.values_mut() {
            if queue.in_flight == 0 && !queue.waiting.is_empty() {
                queue.part_started = now;
                queue.in_flight = queue.waiting.len().min(queue.largest_part);
                let part: Vec<_> = queue.waiting.drain(..queue.in_flight).collect();
                queue.in_flight_bytes = total_bytes(&part);
                parts.push(part);
            }
        }
        parts
    }

    /// Returns the assignments to pause now (true) or resume.
    pub(super) fn flow_changes(&mut self, now: Instant) -> Vec<(u64, bool)> {
        let mut flow = Vec::new();
        for (epoch, queue) in &mut self.by_epoch {
            let waits = queue.waiting.len();
            let pause = if queue.paused { waits > RESUME_AT } else { queue.is_in_the_way(now) };
            if pause != queue.paused {
                queue.paused = pause;
                (queue.stopped_since, queue.large_since) = (None, None);
                flow.push((*epoch, pause));
            }
        }
        flow
    }

    /// When [`flow_changes`](Self::flow_changes) has something to do, if nothing arrives or ends until then.
    pub(super) fn flow_changes_at(&self) -> Option<Instant> {
        let stopped = |queue: &PartitionQueue| Some(queue.stopped_since? + PAUSE_AFTER);
        let large = |queue: &PartitionQueue| Some(queue.large_since? + LARGE_FOR);
        self.by_epoch.values().flat_map(|queue| [stopped(queue), large(queue)]).flatten().min()
    }

    /// Ends the part in flight.
    pub(super) fn end_part(&mut self, epoch: u64, now: Instant) {
        let Some(queue) = self.by_epoch.get_mut(&epoch) else { return };
        queue.adapt_largest_part(now);
        self.held -= std::mem::take(&mut queue.in_flight);
        self.held_bytes -= std::mem::take(&mut queue.in_flight_bytes);
        queue.stopped_since = None;
        if queue.waiting.is_empty() && !queue.closed && !queue.paused {
            self.by_epoch.remove(&epoch);
        }
    }

    /// Closes an assignment: nothing more of it is processed. Returns the waiting deliveries.
    #[must_use]
    pub(super) fn close(&mut self, epoch: u64) -> Vec<Delivery> {
        let queue = self.by_epoch.entry(epoch).or_default();
        queue.closed = true;
        let left = Vec::from(std::mem::take(&mut queue.waiting));
        self.held -= left.len();
        self.held_bytes -= total_bytes(&left);
        left
    }
}

impl Default for PartitionQueue {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            part_started: Instant::now(),
            largest_part: FIRST_PART,
            closed: false,
            paused: false,
            stopped_since: None,
            large_since: None,
        }
    }
}

impl PartitionQueue {
    fn adapt_largest_part(&mut self, now: Instant) {
        let took = now.saturating_duration_since(self.part_started);
        // A smaller one says little about the time of a full one.
        if self.in_flight == self.largest_part {
            if took > LONG_TRANSACTION {
                self.largest_part = (self.largest_part / 2).max(SMALLEST_PART);
            } else if took < SHORT_PART {
                self.largest_part = (self.largest_part * 2).min(LARGEST_PART);
            }
        }
    }

    /// True if it has been full for a while, and no part has ended since; or if it has had half of the room for longer.
    fn is_in_the_way(&mut self, now: Instant) -> bool {
        let waits = self.waiting.len();
        let has_lasted = |since: &mut Option<Instant>, limit: usize, longest: Duration| {
            *since = (waits >= limit).then(|| since.unwrap_or(now));
            since.is_some_and(|since| now.duration_since(since) >= longest)
        };
        let is_stopped = has_lasted(&mut self.stopped_since, PAUSE_AT, PAUSE_AFTER);
        has_lasted(&mut self.large_since, LARGE, LARGE_FOR) || is_stopped
    }
}

fn total_bytes(deliveries: &[Delivery]) -> usize {
    deliveries.iter().map(|delivery| delivery.message.size()).sum()
}

#[cfg(test)]
mod tests {
    use onceward::Message;
    use onceward::adapter::Tag;

    use super::*;

    fn deliveries(epoch: u64, numbers: std::ops::Range<u64>) -> Vec<Delivery> {
        let delivery =
            |number| Delivery { message: Message::builder("four").build(), tag: Tag { epoch, number } };
        numbers.map(delivery).collect()
    }

    fn numbers(parts: &[Vec<Delivery>]) -> Vec<Vec<u64>> {
        let numbers = |part: &Vec<Delivery>| part.iter().map(|own| own.tag.number).collect();
        parts.iter().map(numbers).collect()
    }

    #[test]
    fn one_part_of_a_partition_is_in_flight_and_the_next_has_what_arrived_meanwhile() {
        let mut queues = PartitionQueues::default();
        assert!(queues.push(deliveries(1, 0..2)).is_empty());
        assert_eq!(numbers(&queues.take_parts(Instant::now())), [[0, 1]]);
        assert!(queues.push(deliveries(1, 2..4)).is_empty());
        assert!(queues.push(deliveries(2, 7..8)).is_empty());
        assert_eq!(numbers(&queues.take_parts(Instant::now())), [[7]]);
        assert_eq!((queues.held, queues.held_bytes), (5, 20));
        assert!(queues.have_room(6, 21) && !queues.have_room(5, 21) && !queues.have_room(6, 20));
        queues.end_part(1, Instant::now());
        assert_eq!((numbers(&queues.take_parts(Instant::now())), queues.held), (vec![vec![2, 3]], 3));
        queues.end_part(2, Instant::now());
        queues.end_part(1, Instant::now());
        assert_eq!(
            (queues.take_parts(Instant::now()).len(), queues.held, queues.held_bytes, queues.by_epoch.len()),
            (0, 0, 0, 0)
        );
    }

    #[test]
    fn after_an_unprocessed_part_nothing_of_the_assignment_is_processed() {
        let mut queues = PartitionQueues::default();
        assert!(queues.push(deliveries(1, 0..2)).is_empty());
        let part = queues.take_parts(Instant::now());
        assert!(queues.push(deliveries(1, 2..4)).is_empty());
        assert_eq!(numbers(&[queues.close(1)]), [[2, 3]]);
        queues.end_part(1, Instant::now());
        assert_eq!(numbers(&[queues.push(deliveries(1, 4..5))]), [[4]]);
        assert!(queues.push(deliveries(2, 5..6)).is_empty(), "another assignment");
        assert_eq!(
            (numbers(&queues.take_parts(Instant::now())), queues.held, queues.held_bytes, part.len()),
            (vec![vec![5]], 1, 4, 1)
        );
    }

    #[test]
    fn a_stopped_partition_is_paused_and_resumed_when_few_deliveries_wait() {
        let mut queues = PartitionQueues::default();
        assert!(queues.push(deliveries(1, 0..PAUSE_AT as u64 + 600)).is_empty());
        assert!(queues.push(deliveries(2, 0..10)).is_empty());
        let began = Instant::now();
        assert_eq!(
            (queues.flow_changes(began), queues.flow_changes_at()),
            (vec![], Some(began + PAUSE_AFTER))
        );
        let now = began + PAUSE_AFTER;
        assert_eq!((queues.flow_changes(now), queues.flow_changes_at()), (vec![(1, true)], None));
        assert_eq!(queues.flow_changes(now + PAUSE_AFTER), []);
        let mut resumed = Vec::new();
        while resumed.is_empty() {
            assert!(!queues.take_parts(Instant::now()).is_empty(), "never resumed");
            queues.end_part(1, Instant::now());
            queues.end_part(2, Instant::now());
            resumed = queues.flow_changes(now);
        }
        assert_eq!(resumed, [(1, false)]);
    }

    #[test]
    fn a_full_partition_that_goes_on_is_not_paused() {
        let mut queues = PartitionQueues::default();
        assert!(queues.push(deliveries(1, 0..LARGE as u64 - 1)).is_empty());
        let mut now = Instant::now();
        for _ in 0..10 {
            assert_eq!(queues.take_parts(now).len(), 1);
            assert_eq!(queues.flow_changes(now), []);
            now += LONG_TRANSACTION;
            assert_eq!(queues.flow_changes(now), []);
            queues.end_part(1, now);
        }
        assert_eq!(queues.take_parts(now).len(), 1);
        assert_eq!(queues.flow_changes(now), []);
        assert_eq!(queues.flow_changes(now + PAUSE_AFTER), [(1, true)]);
    }

    #[test]
    fn a_partition_that_goes_on_does_not_keep_half_of_the_room() {
        let mut queues = PartitionQueues::default();
        assert!(queues.push(deliveries(1, 0..MAX_DELIVERIES as u64)).is_empty());
        let (began, step) = (Instant::now(), SHORT_PART);
        let mut now = began;
        // As fast as it goes on, more arrives.
        let paused_at = loop {
            assert_eq!(queues.take_parts(now).len(), 1);
            if !queues.flow_changes(now).is_empty() {
                break now;
            }
            now += step;
            queues.end_part(1, now);
            assert!(queues.push(deliveries(1, 0..FIRST_PART as u64)).is_empty());
        };
        assert!((LARGE_FOR..LARGE_FOR + 2 * step).contains(&(paused_at - began)), "{:?}", paused_at - began);
    }

    #[test]
    fn a_transaction_has_a_limit_that_follows_its_time() {
        let mut queues = PartitionQueues::default();
        let mut now = Instant::now();
        let mut next_part = |queues: &mut PartitionQueues, took: Duration| {
            assert!(queues.push(deliveries(1, 0..LARGEST_PART as u64 + 1)).is_empty());
            let size = queues.take_parts(now)[0].len();
            now += took;
            queues.end_part(1, now);
            size
        };
        let sizes = [(); 4].map(|()| next_part(&mut queues, SHORT_PART / 2));
        assert_eq!(sizes, [500, 1000, 2000, 2000]);
        let sizes = [(); 3].map(|()| next_part(&mut queues, SHORT_PART * 2));
        assert_eq!(sizes, [2000, 2000, 2000]);
        let sizes = [(); 8].map(|()| next_part(&mut queues, LONG_TRANSACTION * 2));
        assert_eq!(sizes, [2000, 1000, 500, 250, 125, 62, 32, 32]);
    }

    #[test]
    fn the_time_of_a_part_that_is_not_full_does_not_change_the_limit() {
        let mut queues = PartitionQueues::default();
        let mut now = Instant::now();
        for took in [SHORT_PART / 2, LONG_TRANSACTION * 2] {
            assert!(queues.push(deliveries(1, 0..3)).is_empty());
            assert_eq!(queues.take_parts(now)[0].len(), 3);
            assert!(queues.push(deliveries(1, 0..1)).is_empty());
            now += took;
            queues.end_part(1, now);
            assert_eq!(queues.take_parts(now)[0].len(), 1);
            assert!(queues.push(deliveries(1, 0..FIRST_PART as u64 + 1)).is_empty());
            queues.end_part(1, now);
            assert_eq!(queues.take_parts(now)[0].len(), FIRST_PART);
            now += SHORT_PART;
            queues.end_part(1, now);
            let _ = queues.take_parts(now);
            queues.end_part(1, now);
        }
    }
}
