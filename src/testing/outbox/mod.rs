//! The conformance suite of outboxes: a named check for each sentence of the contract in
//! [`OutboxStore`](crate::outbox::OutboxStore), and what a [`Relay`](crate::outbox::Relay) makes of it.
//!
//! An outbox passes when [`outbox_conformance!`](crate::outbox_conformance) is green with an [`OutboxHarness`] of its own. The
//! checks are functions, each of which panics if its sentence does not hold; the macro makes one test of each. What the suite
//! does not show: what a killed relay leaves, transactions that write one order key at the same time, and speed.

mod broker;
mod harness;
mod macros;
pub mod relays;
pub mod rows;

pub use harness::OutboxHarness;

use crate::publisher::Outgoing;

/// Payload and order key of a message; none where `key` is empty.
fn message(key: &str, number: u32) -> Outgoing {
    Outgoing {
        destination: "there".into(),
        order_key: Some(key.to_owned().into()).filter(|key: &bytes::Bytes| !key.is_empty()),
        payload: number.to_string().into(),
        ..Outgoing::default()
    }
}
