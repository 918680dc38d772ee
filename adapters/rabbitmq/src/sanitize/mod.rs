//! Sanitises inbound AMQP frames that the AMQP library would reject or crash on.
//!
//! Any producer can set a message id that is not UTF-8, or nest header tables thousands of levels deep. The library closes
//! the connection on the first and overflows its stack, aborting the process, on the second; the broker then redelivers
//! the message to the next worker. The sanitiser replaces such bytes in place with readable bytes of the same length and
//! records the defect of the delivery: the message is dead-lettered, its neighbours are handled.
//!
//! It also closes the connection on frames that no broker sends, before the library would buffer them without limit, and
//! removes the content of returned messages, which the library logs in full.
//!
//! Delete this module when the library parses such frames itself:
//! `docs/decisions/0016-the-amqp-sanitizer.md` lists what it has to pass.

pub(crate) mod defects;
pub(crate) mod frame_order;
pub(crate) mod frames;
pub(crate) mod properties;
pub(crate) mod transport;

#[cfg(test)]
mod tests;
