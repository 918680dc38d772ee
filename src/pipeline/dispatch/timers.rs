//! Deliveries that wait for their next attempt: [`Timers`].

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use tokio::time::Instant;

use crate::pipeline::work::Work;

/// Deliveries by the time at which they are due; of those due at the same time the earlier set one comes first.
#[derive(Default)]
pub(super) struct Timers {
    waiting: BinaryHeap<Reverse<Timer>>,
    count: u64,
}

struct Timer {
    at: Instant,
    number: u64,
    work: Work,
}

impl Timers {
    pub(super) fn set(&mut self, at: Instant, work: Work) {
        self.count += 1;
        self.waiting.push(Reverse(Timer { at, number: self.count, work }));
    }

    /// The next one that is due at `now`.
    pub(super) fn due(&mut self, now: Instant) -> Option<Work> {
        self.next().filter(|at| *at <= now)?;
        self.waiting.pop().map(|Reverse(timer)| timer.work)
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse(timer)| timer.at)
    }

    /// Takes out those that `wanted` selects, in no order.
    pub(super) fn take_if(&mut self, wanted: impl Fn(&Work) -> bool) -> Vec<Work> {
        if !self.all().any(&wanted) {
            return Vec::new();
        }
        let (taken, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|Reverse(timer)| wanted(&timer.work));
        self.waiting = left.into();
        taken.into_iter().map(|Reverse(timer)| timer.work).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// All that wait, in no order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Work> {
        self.waiting.iter().map(|Reverse(timer)| &timer.work)
    }

    /// Takes all that wait, in no order.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Work> {
        std::mem::take(&mut self.waiting).into_iter().map(|Reverse(timer)| timer.work)
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
