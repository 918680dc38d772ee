//! What waits for its turn, by assignment of a partition: [`Queues`].

use std::collections::{BTreeMap, VecDeque};

use onceward::Delivery;

/// The most records of one transaction.
const TOGETHER: usize = 500;

/// So many deliveries of one partition wait before nothing more is taken of it, and so few before it goes on: a partition that
/// stands still leaves the room to the others.
const MANY: usize = 2000;
const FEW: usize = 500;

/// Deliveries of partitions, in order. Of each partition one part is under way at a time, so that whoever has a part knows that
/// all before it is done.
#[derive(Debug, Default)]
pub(super) struct Queues {
    by_epoch: BTreeMap<u64, Queue>,
    /// Those that wait and those under way, and their bytes.
    held: usize,
    held_bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Delivery>,
    under_way: usize,
    under_way_bytes: usize,
    /// A part of it was left undone: what comes after it must not be done either.
    closed: bool,
    /// Nothing more is taken of it.
    paused: bool,
}

impl Queues {
    pub(super) fn have_room(&self, records: usize, bytes: usize) -> bool {
        self.held < records && self.held_bytes < bytes
    }

    /// Those whose partition is [closed](Self::close) come back.
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

    /// The next parts of partitions of which none is under way.
    pub(super) fn start(&mut self) -> Vec<Vec<Delivery>> {
        let mut parts = Vec::new();
        for queue in self.by_epoch.values_mut() {
            if queue.under_way == 0 && !queue.waiting.is_empty() {
                queue.under_way = queue.waiting.len().min(TOGETHER);
                let part: Vec<_> = queue.waiting.drain(..queue.under_way).collect();
                queue.under_way_bytes = bytes(&part);
                parts.push(part);
            }
        }
        parts
    }

    /// The assignments that are to be paused now (true) or resumed.
    pub(super) fn flow(&mut self) -> Vec<(u64, bool)> {
        let mut flow = Vec::new();
        for (epoch, queue) in &mut self.by_epoch {
            let waits = queue.waiting.len();
            let pause = if queue.paused { waits > FEW } else { waits >= MANY };
            if pause != queue.paused {
                queue.paused = pause;
                flow.push((*epoch, pause));
            }
        }
        flow
    }

    /// The part that was under way has ended.
    pub(super) fn ended(&mut self, epoch: u64) {
        let Some(queue) = self.by_epoch.get_mut(&epoch) else { return };
        self.held -= std::mem::take(&mut queue.under_way);
        self.held_bytes -= std::mem::take(&mut queue.under_way_bytes);
        if queue.waiting.is_empty() && !queue.closed && !queue.paused {
            self.by_epoch.remove(&epoch);
        }
    }

    /// Nothing of this assignment is handed out any more; what waited comes back.
    #[must_use]
    pub(super) fn close(&mut self, epoch: u64) -> Vec<Delivery> {
        let queue = self.by_epoch.entry(epoch).or_default();
        queue.closed = true;
        let left = Vec::from(std::mem::take(&mut queue.waiting));
        self.held -= left.len();
        self.held_bytes -= bytes(&left);
        left
    }
}

fn bytes(deliveries: &[Delivery]) -> usize {
    deliveries.iter().map(|delivery| delivery.message.size()).sum()
}

#[cfg(test)]
mod tests {
    use onceward::{Message, Tag};

    use super::*;

    fn deliveries(epoch: u64, numbers: std::ops::Range<u64>) -> Vec<Delivery> {
        let delivery =
            |number| Delivery { message: Message::builder("four").build(), tag: Tag { epoch, number } };
        numbers.map(delivery).collect()
    }

    fn numbers(parts: &[Vec<Delivery>]) -> Vec<Vec<u64>> {
        let of = |part: &Vec<Delivery>| part.iter().map(|one| one.tag.number).collect();
        parts.iter().map(of).collect()
    }

    #[test]
    fn of_each_partition_one_part_is_under_way_and_the_next_is_what_came_meanwhile() {
        let mut queues = Queues::default();
        assert!(queues.push(deliveries(1, 0..2)).is_empty());
        assert_eq!(numbers(&queues.start()), [[0, 1]]);
        assert!(queues.push(deliveries(1, 2..4)).is_empty());
        assert!(queues.push(deliveries(2, 7..8)).is_empty());
        assert_eq!(numbers(&queues.start()), [[7]]);
        assert_eq!((queues.held, queues.held_bytes), (5, 20));
        assert!(queues.have_room(6, 21) && !queues.have_room(5, 21) && !queues.have_room(6, 20));
        queues.ended(1);
        assert_eq!((numbers(&queues.start()), queues.held), (vec![vec![2, 3]], 3));
        queues.ended(2);
        queues.ended(1);
        assert_eq!(
            (queues.start().len(), queues.held, queues.held_bytes, queues.by_epoch.len()),
            (0, 0, 0, 0)
        );
    }

    #[test]
    fn behind_what_was_left_undone_nothing_of_the_assignment_is_done() {
        let mut queues = Queues::default();
        assert!(queues.push(deliveries(1, 0..2)).is_empty());
        let part = queues.start();
        assert!(queues.push(deliveries(1, 2..4)).is_empty());
        assert_eq!(numbers(&[queues.close(1)]), [[2, 3]]);
        queues.ended(1);
        assert_eq!(numbers(&[queues.push(deliveries(1, 4..5))]), [[4]]);
        assert!(queues.push(deliveries(2, 5..6)).is_empty(), "another assignment");
        assert_eq!(
            (numbers(&queues.start()), queues.held, queues.held_bytes, part.len()),
            (vec![vec![5]], 1, 4, 1)
        );
    }

    #[test]
    fn a_partition_that_stands_still_is_paused_and_goes_on_when_little_waits() {
        let mut queues = Queues::default();
        assert!(queues.push(deliveries(1, 0..MANY as u64 + 600)).is_empty());
        assert!(queues.push(deliveries(2, 0..10)).is_empty());
        assert_eq!(queues.flow(), [(1, true)]);
        assert_eq!(queues.flow(), []);
        let mut resumed = Vec::new();
        while resumed.is_empty() {
            assert!(!queues.start().is_empty(), "never resumed");
            queues.ended(1);
            queues.ended(2);
            resumed = queues.flow();
        }
        assert_eq!(resumed, [(1, false)]);
    }

    #[test]
    fn a_transaction_has_a_limit() {
        let mut queues = Queues::default();
        assert!(queues.push(deliveries(1, 0..1200)).is_empty());
        let sizes = [(); 3].map(|()| {
            let size = queues.start()[0].len();
            queues.ended(1);
            size
        });
        assert_eq!(sizes, [TOGETHER, TOGETHER, 200]);
    }
}
