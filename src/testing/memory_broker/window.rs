//! Unsettled deliveries of the memory broker, by tag.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::message::Message;

pub(super) struct Unsettled {
    pub(super) message: Message,
    pub(super) consumer: u64,
    pub(super) until: Option<Instant>,
}

#[derive(Default)]
pub(super) struct UnsettledWindow {
    first: u64,
    slots: VecDeque<Option<Unsettled>>,
    pub(super) count: usize,
}

impl UnsettledWindow {
    pub(super) fn next_tag(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    pub(super) fn push(&mut self, unsettled: Unsettled) {
        self.slots.push_back(Some(unsettled));
        self.count += 1;
    }

    pub(super) fn get_mut(&mut self, tag: u64) -> Option<&mut Unsettled> {
        let index = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(index)?.as_mut()
    }

    pub(super) fn remove(&mut self, tag: u64) -> Option<Unsettled> {
        let index = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        let unsettled = self.slots.get_mut(index)?.take()?;
        self.count -= 1;
        self.trim();
        Some(unsettled)
    }

    /// Takes these, in order. Their tags are void from now on.
    pub(super) fn take(&mut self, which: impl Fn(&Unsettled) -> bool) -> Vec<Unsettled> {
        let mine = |slot: &&mut Option<Unsettled>| slot.as_ref().is_some_and(&which);
        let taken: Vec<_> = self.slots.iter_mut().filter(mine).filter_map(Option::take).collect();
        self.count -= taken.len();
        self.trim();
        taken
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Unsettled)> {
        (self.first..).zip(&self.slots).filter_map(|(tag, slot)| Some((tag, slot.as_ref()?)))
    }

    fn trim(&mut self) {
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
        }
    }
}
