//! Claimed deliveries that must not start although their round is under way: [`Halt`].

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use foldhash::{HashSet, HashSetExt};

use super::work::InFlight;

/// Set by the dispatcher, read by the rounds before each run.
#[derive(Debug)]
pub(crate) struct Halt {
    /// The number of the breaker's opening: only the probe of this one runs. 0: it is closed.
    handler_down: AtomicU64,
    any_leaving: AtomicBool,
    leaving: Mutex<HashSet<u64>>,
}

impl Halt {
    pub(crate) fn new() -> Self {
        Self {
            handler_down: AtomicU64::new(0),
            any_leaving: AtomicBool::new(false),
            leaving: Mutex::new(HashSet::new()),
        }
    }

    pub(super) fn set_handler_down(&self, opening: Option<u64>) {
        self.handler_down.store(opening.unwrap_or(0), Ordering::Release);
    }

    /// The deliveries of this epoch belong to another consumer soon.
    pub(super) fn leave(&self, epoch: u64) {
        self.lock().insert(epoch);
        self.any_leaving.store(true, Ordering::Release);
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
