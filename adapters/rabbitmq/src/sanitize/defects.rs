//! Defects of sanitised deliveries, and the limit of deliveries that the consumer has not taken yet: [`Defects`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Defects by channel and delivery tag, kept until the consumer takes the delivery. Also counts deliveries that were
/// received and not taken, so that a broker that ignores the prefetch is detected.
#[derive(Debug, Default)]
pub(crate) struct Defects {
    count: AtomicUsize,
    defects: Mutex<HashMap<(u16, u64), &'static str>>,
    /// The subscribed channel; 0 without a subscription.
    channel: AtomicUsize,
    /// The number of its deliveries that the consumer add_taken, and how many more may be buffered.
    taken: AtomicU64,
    ahead: AtomicU64,
}

impl Defects {
    pub(crate) fn note(&self, channel: u16, tag: u64, defect: &'static str) {
        let mut defects = self.defects.lock().unwrap_or_else(PoisonError::into_inner);
        defects.entry((channel, tag)).or_insert(defect);
        self.count.store(defects.len(), Ordering::Release);
    }

    /// Notes that a subscription starts on the new channel `channel`, with at most `prefetch` unsettled deliveries.
    pub(crate) fn start_subscription(&self, channel: u16, prefetch: u16) {
        self.forget(channel);
        self.taken.store(0, Ordering::Release);
        self.ahead.store(2 * u64::from(prefetch) + 1000, Ordering::Release);
        self.channel.store(channel.into(), Ordering::Release);
    }

    /// True if a broker that respects the prefetch may have sent this many deliveries on a channel.
    pub(crate) fn within_limit(&self, channel: u16, deliveries: u64) -> bool {
        self.channel.load(Ordering::Acquire) != usize::from(channel)
            || deliveries <= self.taken.load(Ordering::Acquire) + self.ahead.load(Ordering::Acquire)
    }

    /// Notes that the consumer add_taken deliveries of the subscription.
    pub(crate) fn add_taken(&self, count: usize) {
        self.taken.fetch_add(count as u64, Ordering::AcqRel);
    }

    /// Removes and returns the defect of a delivery.
    pub(crate) fn take(&self, channel: u16, tag: u64) -> Option<&'static str> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut defects = self.defects.lock().unwrap_or_else(PoisonError::into_inner);
        let defect = defects.remove(&(channel, tag));
        self.count.store(defects.len(), Ordering::Release);
        defect
    }

    /// Forgets a closed channel: its number and its tags are reused.
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
        let defects = Defects::default();
        assert!(defects.within_limit(1, u64::MAX), "there is no subscription on it");
        defects.start_subscription(1, 10);
        assert!(defects.within_limit(1, 1020) && !defects.within_limit(1, 1021));
        defects.add_taken(5);
        assert!(defects.within_limit(1, 1025) && !defects.within_limit(1, 1026));
        defects.start_subscription(2, 10);
        assert!(!defects.within_limit(2, 1021), "it is another channel");
    }
}
