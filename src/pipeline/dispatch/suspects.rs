//! Deliveries whose claims lapsed before, queued outside the concurrency slots until their turn: [`Suspects`].

use std::collections::{BTreeMap, VecDeque};

use super::queue::extract;
use crate::pipeline::work::{Turn, Work};

/// Up to this many suspects run one by one.
const FEW: usize = 16;

/// The suspects of this process, by how many of their claims have lapsed. See decision 0002.
///
/// Few suspects run one by one, each after a write that marks its run as started: if the process dies, that one is
/// charged. Many suspects, as after a crash with hundreds of claims, run side by side and unmarked, so that a death
/// charges none of them; but the more claims of a key have lapsed, the fewer of its kind run at once: all after the
/// first crash, half as many after each further one, until they run alone and marked.
#[derive(Default)]
pub(super) struct Suspects {
    waiting: BTreeMap<u32, VecDeque<Work>>,
    count: usize,
    running: usize,
    turn: Option<Turn>,
    /// Of those that run side by side.
    lost: u32,
    /// Stays set until all have had their turn.
    many: bool,
}

impl Suspects {
    /// `behind`: counts the suspects in lanes, up to a number. One lapse can have met many of a lane.
    pub(super) fn park(&mut self, work: Work, behind: impl FnOnce(usize) -> usize) {
        self.count += 1;
        self.waiting.entry(work.lost).or_default().push_back(work);
        let known = self.count + self.running;
        self.many = self.many || known > FEW || known + behind(FEW) > FEW;
    }

    /// A turn is over, its record is durable.
    pub(super) fn turn_ended(&mut self) {
        self.running -= 1;
        if self.running == 0 {
            self.turn = None;
            self.many &= self.count > 0;
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.count
    }

    /// True if [`next`](Self::next) has something to give.
    pub(super) fn may_start(&self, concurrency: usize) -> bool {
        self.count > 0 && self.room(concurrency) > 0
    }

    /// How many may start now.
    fn room(&self, concurrency: usize) -> usize {
        let Some(lost) = self.waiting.keys().next().copied() else { return 0 };
        match self.turn {
            None if !self.many => 1,
            None => side_by_side(lost, concurrency),
            Some(Turn::Alone) => 0,
            Some(Turn::Beside) if lost == self.lost => {
                side_by_side(lost, concurrency).saturating_sub(self.running)
            }
            Some(Turn::Beside) => 0,
        }
    }

    /// Up to `limit` suspects whose turn it is.
    pub(super) fn next(&mut self, limit: usize, concurrency: usize) -> Vec<Work> {
        let room = self.room(concurrency).min(limit);
        let Some(mut of_kind) = self.waiting.first_entry() else { return Vec::new() };
        if room == 0 {
            return Vec::new();
        }
        let lost = *of_kind.key();
        let alone = !self.many || side_by_side(lost, concurrency) == 1;
        let turn = if alone { Turn::Alone } else { Turn::Beside };
        let taken = room.min(of_kind.get().len());
        let mut works: Vec<Work> = of_kind.get_mut().drain(..taken).collect();
        if of_kind.get().is_empty() {
            of_kind.remove();
        }
        works.iter_mut().for_each(|work| work.turn = Some(turn));
        self.count -= works.len();
        self.running += works.len();
        (self.turn, self.lost) = (Some(turn), lost);
        works
    }

    /// Takes out those that `wanted` selects, in no order.
    pub(super) fn take_if(&mut self, mut wanted: impl FnMut(&Work) -> bool) -> Vec<Work> {
        let mut taken = Vec::new();
        for works in self.waiting.values_mut() {
            taken.extend(extract(works, &mut wanted));
        }
        self.waiting.retain(|_, works| !works.is_empty());
        self.count -= taken.len();
        taken
    }
}

/// How many keys that have each lost `lost` claims may run at once.
fn side_by_side(lost: u32, concurrency: usize) -> usize {
    concurrency.checked_shr(lost.saturating_sub(1)).unwrap_or(0).max(1)
}
