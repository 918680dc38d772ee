//! Claimed deliveries that must not start although their round is under way: [`Halt`].

use parking_lot::Mutex;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use foldhash::{HashSet, HashSetExt};
use tokio::sync::Notify;

use super::work::InFlight;

/// Set by the dispatcher, read by the rounds before each run.
#[derive(Debug)]
pub(crate) struct Halt {
    /// The number of the breaker's opening: only the probe of this one runs. 0: it is closed.
    handler_down: AtomicU64,
    any_leaving: AtomicBool,
    leaving: Mutex<HashSet<u64>>,
    store_down: AtomicBool,
    /// Wakes deliveries that wait for a slot: they may have to stop.
    changed: Notify,
}

impl Halt {
    pub(crate) fn new() -> Self {
        Self {
            handler_down: AtomicU64::new(0),
            any_leaving: AtomicBool::new(false),
            leaving: Mutex::new(HashSet::new()),
            store_down: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    pub(super) fn set_handler_down(&self, opening: Option<u64>) {
        let before = self.handler_down.swap(opening.unwrap_or(0), Ordering::AcqRel);
        if opening.is_some_and(|opening| opening != before) {
            self.changed.notify_waiters();
        }
    }

    /// The deliveries of this epoch belong to another consumer soon.
    pub(super) fn leave(&self, epoch: u64) {
        self.lock().insert(epoch);
        self.any_leaving.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Nothing that waits for a slot may start while the store is down.
    pub(super) fn set_store_down(&self, is_down: bool) {
        self.store_down.store(is_down, Ordering::Release);
        if is_down {
            self.changed.notify_waiters();
        }
    }

    /// True if this delivery, which waits for a slot, must not start.
    pub(super) fn stops_waiting(&self, work: &InFlight) -> bool {
        self.store_down.load(Ordering::Acquire) || self.stops(work)
    }

    /// Waits until this delivery, which waits for a slot, must not start.
    ///
    /// # Cancel safety
    /// A dropped call has no effect.
    pub(super) async fn stopped(&self, work: &InFlight) {
        loop {
            // It is registered before the look, so that no change is missed.
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.stops_waiting(work) {
                return;
            }
            changed.await;
        }
    }

    /// Nothing of this epoch is in hand any more.
    pub(super) fn forget(&self, epoch: u64) {
        self.lock().remove(&epoch);
    }

    pub(crate) fn is_leaving(&self, epoch: u64) -> bool {
        self.any_leaving.load(Ordering::Acquire) && self.lock().contains(&epoch)
    }

    /// True if this delivery must not start.
    pub(crate) fn stops(&self, work: &InFlight) -> bool {
        let opening = self.handler_down.load(Ordering::Acquire);
        (opening != 0 && work.probe != Some(opening)) || self.is_leaving(work.receipt.tag().epoch)
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, HashSet<u64>> {
        self.leaving.lock()
    }
}
