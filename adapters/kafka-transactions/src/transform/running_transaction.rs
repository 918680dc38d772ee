//! The state of the running transaction, for those who wait for its end: [`RunningTransaction`].

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Whether a transaction is open. Partitions are given up between transactions only: the group's offsets are then final, also for
/// this process, which may be assigned them again at once.
#[derive(Debug, Default)]
pub(super) struct RunningTransaction {
    is_open: Mutex<bool>,
    closed: Condvar,
}

impl RunningTransaction {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self) {
        *self.lock() = true;
    }

    pub(super) fn close(&self) {
        *self.lock() = false;
        self.closed.notify_all();
    }

    /// Blocks until no transaction is open.
    pub(super) fn wait_closed(&self) {
        drop(self.closed.wait_while(self.lock(), |is_open| *is_open).unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    #[test]
    fn partitions_are_given_up_when_the_transaction_is_closed() {
        let own = Arc::new(RunningTransaction::default());
        own.wait_closed();
        own.open();
        let (order, noted) = mpsc::channel();
        let (waiting, waited) = (Arc::clone(&own), order.clone());
        let thread = std::thread::spawn(move || {
            waited.send("waiting").unwrap();
            waiting.wait_closed();
            waited.send("given up").unwrap();
        });
        assert_eq!(noted.recv().unwrap(), "waiting");
        order.send("closed").unwrap();
        own.close();
        thread.join().unwrap();
        assert_eq!(noted.try_iter().collect::<Vec<_>>(), ["closed", "given up"]);
    }
}
