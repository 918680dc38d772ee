//! The tests of this adapter on real servers: one executable, so that they are linked once and share the servers.
#![allow(clippy::unwrap_used)]

mod conformance;
mod fidelity;
mod health;
mod isolation;
mod limits;
mod lying;
mod pipeline;
mod poison;
mod publisher;
mod reconnect;
mod replies;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod waiting;
mod wrap_existing;
