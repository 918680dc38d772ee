//! Messages whose run ended in doubt together with others, and which therefore run alone next: [`SuspectRuns`].

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

use onceward::Message;
use parking_lot::Mutex;

/// The most messages that are remembered. Beyond, the oldest one runs among others again.
pub(crate) const SUSPECT_LIMIT: u32 = 4096;

/// The messages that are to run alone: a call with several of them failed without a verdict about each, and one of them may be
/// the cause. Alone, each gets a verdict of its own, and none uses an attempt for its neighbours.
///
/// They are recognised by a hash of their key: where two share it, one more message runs alone.
#[derive(Debug, Default)]
pub(super) struct SuspectRuns {
    hasher: RandomState,
    known: Mutex<KnownSuspects>,
}

#[derive(Debug, Default)]
struct KnownSuspects {
    set: HashSet<u64>,
    order: VecDeque<u64>,
}

impl SuspectRuns {
    /// What identifies the message here: its key or, without one, its payload.
    pub(super) fn mark(&self, message: &Message) -> u64 {
        match message.key() {
            Some(key) => self.hasher.hash_one(key),
            None => self.hasher.hash_one(message.payload()),
        }
    }

    /// True if the message is to run alone.
    pub(super) fn contains(&self, mark: u64) -> bool {
        let known = self.known.lock();
        !known.set.is_empty() && known.set.contains(&mark)
    }

    /// From now on the message runs alone.
    pub(super) fn insert(&self, mark: u64) {
        let mut known = self.known.lock();
        if known.set.insert(mark) {
            known.order.push_back(mark);
        }
        if known.order.len() > SUSPECT_LIMIT as usize
            && let Some(oldest) = known.order.pop_front()
        {
            known.set.remove(&oldest);
        }
    }

    /// The message has got a verdict of its own.
    pub(super) fn remove(&self, mark: u64) {
        let mut known = self.known.lock();
        if !known.set.is_empty() && known.set.remove(&mark) {
            known.order.retain(|other| *other != mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_remembered_until_it_has_a_verdict_and_the_number_is_bounded() {
        const LIMIT: usize = SUSPECT_LIMIT as usize;
        let suspects = SuspectRuns::default();
        let marks: Vec<_> = (0..=LIMIT as u64).collect();
        for mark in &marks {
            suspects.insert(*mark);
            suspects.insert(*mark);
        }
        assert!(!suspects.contains(0) && suspects.contains(1) && suspects.contains(LIMIT as u64));
        suspects.remove(1);
        assert!(!suspects.contains(1));
        let known = suspects.known.lock();
        assert_eq!((known.set.len(), known.order.len()), (LIMIT - 1, LIMIT - 1));
    }
}
