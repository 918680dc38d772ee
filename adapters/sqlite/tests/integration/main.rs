//! The tests of this adapter on real servers: one executable, so that they are linked once and share the servers.
#![allow(clippy::unwrap_used)]

#[path = "../../../postgres/tests/support/claimed.rs"]
mod claimed;
mod clock;
mod damaged;
mod file;
mod pipeline;
mod sql_handler;
#[path = "../support/mod.rs"]
mod support;
mod unreadable;
