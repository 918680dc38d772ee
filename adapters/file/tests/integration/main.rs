//! The tests of this adapter on real servers: one executable, so that they are linked once and share the servers.
#![allow(clippy::unwrap_used)]

mod backlog;
mod conformance;
mod content;
mod follow;
mod lines;
mod offsets;
mod pipeline;
mod publisher;
mod streams;
#[path = "../support/mod.rs"]
mod support;
