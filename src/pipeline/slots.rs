//! The slots in which handlers run, where more is claimed than has a slot: [`RunSlots`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// A claimed delivery that waits for its slot for longer shows that too much is claimed.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// As many slots as handlers may run at once. Claimed deliveries take them in the order of their claims.
#[derive(Debug)]
pub(crate) struct RunSlots {
    free: Semaphore,
    waited_long: AtomicBool,
}

/// Slots that a round took together, for its runs to come.
#[derive(Debug)]
pub(crate) struct TakenSlots<'s>(Option<SemaphorePermit<'s>>);

/// A slot; free again when dropped.
pub(crate) type Slot<'s> = SemaphorePermit<'s>;

impl RunSlots {
    pub(crate) fn new(count: usize) -> Self {
        Self { free: Semaphore::new(count), waited_long: AtomicBool::new(false) }
    }

    /// Takes up to `count` slots, as many as are free.
    pub(crate) fn take(&self, count: usize) -> TakenSlots<'_> {
        let mut count = u32::try_from(count.min(self.free.available_permits())).unwrap_or(u32::MAX);
        while count > 0 {
            if let Ok(taken) = self.free.try_acquire_many(count) {
                return TakenSlots(Some(taken));
            }
            // Another round was faster.
            let free = u32::try_from(self.free.available_permits()).unwrap_or(u32::MAX);
            count = free.min(count - 1);
        }
        TakenSlots(None)
    }

    /// Waits for a slot, and says whether that took long; `None` once a drain has begun.
    ///
    /// # Cancel safety
    /// A dropped call has taken none.
    pub(crate) async fn wait(&self) -> Option<(Slot<'_>, bool)> {
        let since = Instant::now();
        let slot = self.free.acquire().await.ok()?;
        let was_long = since.elapsed() > LONGEST_WAIT;
        if was_long {
            self.waited_long.store(true, Ordering::Relaxed);
        }
        Some((slot, was_long))
    }

    /// True if a slot is free: no claimed delivery waits.
    pub(crate) fn any_free(&self) -> bool {
        self.free.available_permits() > 0
    }

    /// True if a delivery has waited long since the last call.
    pub(crate) fn waited_long(&self) -> bool {
        self.waited_long.load(Ordering::Relaxed) && self.waited_long.swap(false, Ordering::Relaxed)
    }

    /// A drain begins: what waits gets no slot any more.
    pub(crate) fn close(&self) {
        self.free.close();
    }
}

impl<'s> TakenSlots<'s> {
    /// One of them, if any is left.
    pub(crate) fn next(&mut self) -> Option<Slot<'s>> {
        self.0.as_mut()?.split(1)
    }

    /// How many are left.
    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, SemaphorePermit::num_permits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slot_is_free_again_when_it_is_dropped_and_what_is_left_of_those_taken_too() {
        let slots = RunSlots::new(3);
        let mut taken = slots.take(5);
        let first = taken.next().unwrap();
        assert!(!slots.any_free());
        assert!(slots.take(1).next().is_none());
        drop(taken);
        assert_eq!(slots.free.available_permits(), 2);
        drop(first);
        assert_eq!(slots.free.available_permits(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_wait_is_noted_once_and_a_short_one_is_not() {
        let slots = RunSlots::new(1);
        for (wait, is_long) in [(LONGEST_WAIT, false), (LONGEST_WAIT + Duration::from_millis(1), true)] {
            let held = slots.wait().await.unwrap();
            let (slot, ()) = tokio::join!(slots.wait(), async {
                tokio::time::sleep(wait).await;
                drop(held);
            });
            assert_eq!(slot.map(|(_, was_long)| was_long), Some(is_long));
            assert_eq!((slots.waited_long(), slots.waited_long()), (is_long, false), "{wait:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_the_wait() {
        let slots = RunSlots::new(1);
        let held = slots.wait().await;
        let (slot, ()) = tokio::join!(slots.wait(), async { slots.close() });
        assert!(slot.is_none() && held.is_some());
        assert!(slots.take(1).next().is_none());
    }
}
