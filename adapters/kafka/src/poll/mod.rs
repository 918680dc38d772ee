//! The poll thread: reads records while there is room for them, commits, and keeps the membership alive while handlers run.

mod commit;
mod log_reset;
mod pending;
mod probe;
mod read_ahead;
mod rebalance;
mod retention;
mod revocation;
mod stalls;
pub(crate) mod thread;
