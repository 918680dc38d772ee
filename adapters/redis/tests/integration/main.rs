//! The tests of this adapter on real servers: one executable, so that they are linked once and share the servers.
#![allow(clippy::unwrap_used)]

mod audit;
mod cluster;
mod cluster_silence;
mod compact;
mod failover;
mod faults;
mod pipeline;
mod plaintext;
mod refused;
mod rights_and_tls;
mod same_as_reference;
mod silence;
mod start_check;
#[path = "../support/mod.rs"]
mod support;
