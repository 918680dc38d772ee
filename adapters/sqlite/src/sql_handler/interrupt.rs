//! Ends a statement that runs when its message's run is over: [`Interrupt`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use onceward::Cancellation;
use sqlx::sqlite::SqliteConnection;

/// How many of SQLite's instructions run between two looks: about a millisecond's worth.
const INSTRUCTIONS: i32 = 100_000;

/// Interrupts the connection's statement once the run is cancelled, or this is dropped. Without it, the statement would
/// go on in SQLite's thread and keep the store's only writer, renewals included, waiting to its end.
#[derive(Debug)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Watches `conn` for `cancellation`.
    pub(super) async fn install(
        conn: &mut SqliteConnection,
        cancellation: Cancellation,
    ) -> sqlx::Result<Self> {
        let dropped = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&dropped);
        let mut interrupted = false;
        conn.lock_handle().await?.set_progress_handler(INSTRUCTIONS, move || {
            // Once only: left behind on the connection by a dropped run, it must not fail what comes after.
            let interrupt = !interrupted && (seen.load(Ordering::Relaxed) || cancellation.is_cancelled());
            interrupted |= interrupt;
            !interrupt
        });
        Ok(Self(dropped))
    }

    /// Stops watching: the statement has ended.
    pub(super) async fn remove(self, conn: &mut SqliteConnection) -> sqlx::Result<()> {
        conn.lock_handle().await?.remove_progress_handler();
        Ok(())
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
