//! The number of claims beyond the slots, so that handlers do not wait for claims: [`ClaimsAhead`].

use crate::pipeline::slots::RunSlots;

/// Doubles while deliveries wait to be claimed, all slots are taken and handlers are idle nevertheless: claims hold the slots. Begins
/// again at zero where a claimed delivery waits long for its slot. So it stays near zero where handlers take longer than claims.
#[derive(Debug)]
pub(super) struct ClaimsAhead {
    most: usize,
    count: usize,
    /// Claims were answered, or runs have ended, since it grew: slow handlers that end together must not let it grow by more than a step.
    answered: bool,
    ended: bool,
}

impl ClaimsAhead {
    pub(super) fn new(most: usize) -> Self {
        Self { most, count: 0, answered: false, ended: false }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Claims were answered.
    pub(super) fn answered(&mut self) {
        self.answered = true;
    }

    /// Runs have ended.
    pub(super) fn ended(&mut self) {
        self.ended = true;
    }

    /// Nothing more can be claimed, although more is there.
    pub(super) fn lacks(&mut self, slots: &RunSlots) {
        if self.answered && self.ended && self.count < self.most && slots.any_free() {
            (self.answered, self.ended) = (false, false);
            self.count = (self.count * 2).clamp(1, self.most);
        }
    }

    /// Begins again at zero if a claimed delivery has waited long.
    pub(super) fn look(&mut self, slots: &RunSlots) {
        if slots.waited_long() {
            self.count = 0;
        }
    }
}
