//! The tests of this adapter on real servers: one executable, so that they are linked once and share the servers.
#![allow(clippy::unwrap_used)]

mod conformance;
mod faults;
mod pipeline;
#[path = "../support/mod.rs"]
mod support;
mod trouble;
mod wrap_existing;
