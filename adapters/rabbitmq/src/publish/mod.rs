//! The confirmed publishing path, shared by the publisher and the delay queues.

mod batch;
pub(crate) mod confirm_channel;
pub(crate) mod confirms;
mod header_table;
pub(crate) mod publishing;
mod refusals;
