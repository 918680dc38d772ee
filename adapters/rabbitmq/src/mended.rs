//! What is known of the deliveries that the AMQP library holds and the consumer has not taken yet: [`Mended`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What was mended, by channel and delivery tag, until the delivery is taken; and how many may wait to be taken.
#[derive(Debug, Default)]
pub(crate) struct Mended {
    count: AtomicUsize,
    defects: Mutex<HashMap<(u16, u64), &'static str>>,
    /// The channel with the subscription; 0 if there is none.
    channel: AtomicUsize,
    /// How many of its deliveries were taken, and how many more may come.
    taken: AtomicU64,
    ahead: AtomicU64,
}

impl Mended {
    pub(crate) fn note(&self, channel: u16, tag: u64, defect: &'static str) {
        let mut defects = self.defects.lock().unwrap_or_else(PoisonError::into_inner);
        defects.entry((channel, tag)).or_insert(defect);
        self.count.store(defects.len(), Ordering::Release);
    }

    /// Says that `channel`, just opened, gets a subscription under which at most `prefetch` deliveries are unsettled.
    pub(crate) fn subscribes(&self, channel: u16, prefetch: u16) {
        self.forget(channel);
        self.taken.store(0, Ordering::Release);
        self.ahead.store(2 * u64::from(prefetch) + 1000, Ordering::Release);
        self.channel.store(channel.into(), Ordering::Release);
    }

    /// Whether a broker that keeps to the prefetch may have sent so many deliveries on a channel.
    pub(crate) fn may_have_come(&self, channel: u16, deliveries: u64) -> bool {
        self.channel.load(Ordering::Acquire) != usize::from(channel)
            || deliveries <= self.taken.load(Ordering::Acquire) + self.ahead.load(Ordering::Acquire)
    }

    /// Notes that deliveries of the subscription were taken.
    pub(crate) fn took(&self, count: usize) {
        self.taken.fetch_add(count as u64, Ordering::AcqRel);
    }

    /// What was wrong with a delivery, if anything.
    pub(crate) fn take(&self, channel: u16, tag: u64) -> Option<&'static str> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut defects = self.defects.lock().unwrap_or_else(PoisonError::into_inner);
        let defect = defects.remove(&(channel, tag));
        self.count.store(defects.len(), Ordering::Release);
        defect
    }

    /// Forgets a channel that ended: its number and its tags are used again.
    fn forget(&self, channel: u16) {
        let mut defects = self.defects.lock().unwrap_or_else(PoisonError::into_inner);
        defects.retain(|(own, _), _| *own != channel);
        self.count.store(defects.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_deliveries_than_the_prefetch_allows_are_noticed() {
        let mended = Mended::default();
        assert!(mended.may_have_come(1, u64::MAX), "nobody has subscribed there");
        mended.subscribes(1, 10);
        assert!(mended.may_have_come(1, 1020) && !mended.may_have_come(1, 1021));
        mended.took(5);
        assert!(mended.may_have_come(1, 1025) && !mended.may_have_come(1, 1026));
        mended.subscribes(2, 10);
        assert!(!mended.may_have_come(2, 1021), "it is another channel");
    }
}
