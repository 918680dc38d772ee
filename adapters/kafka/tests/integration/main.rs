//! The tests of this adapter on real servers: one executable, so that they are linked once and share the servers.
#![allow(clippy::unwrap_used)]

mod conformance;
mod inspect;
mod password;
mod pipeline;
mod publisher;
mod rebalance;
mod records;
mod recreated;
mod refusals;
mod secured;
#[path = "../support/mod.rs"]
mod support;
mod waiting;
mod wrap_existing;
