//! The tests of this adapter on real servers: one executable, so that they are linked once and share the servers.
#![allow(clippy::unwrap_used)]

#[path = "../support/claimed.rs"]
mod claimed;
mod complete;
mod connections;
mod crashes;
mod databases;
mod edges;
mod expiry;
mod faults;
mod fences;
mod handler_errors;
mod hostile;
mod locks;
mod lying;
mod marks;
mod offsets;
mod outbox;
mod ownership;
mod pooler;
mod refused;
#[path = "../support/expiry.rs"]
mod rows;
mod sql_handler;
#[path = "../support/store.rs"]
mod store;
mod together;
mod transaction;
mod unreadable;
mod upgrade;
mod wrap_existing;
