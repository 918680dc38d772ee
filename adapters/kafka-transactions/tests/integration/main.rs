//! The tests of this adapter on real servers: one executable, so that they are linked once and share the servers.
#![allow(clippy::unwrap_used)]

mod effects;
#[path = "../../../kafka/tests/support/mod.rs"]
mod support;
mod transform;
mod transform_batches;
mod transform_stage;
mod uppercase;
