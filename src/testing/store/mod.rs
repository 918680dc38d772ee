//! The conformance suite of stores: a named check for each sentence of the contract in [`Store`](crate::Store).
//!
//! A store passes when [`store_conformance!`](crate::store_conformance) is green with a [`StoreHarness`] of its own.
//! The checks are functions, each of which panics if its sentence does not hold; the macro makes one test of each, so
//! that the results show by name. The suite does not cover durability across a killed process, nor speed.
//!
//! ```
//! # #[cfg(any())]
//! mod conformance {
//!     use onceward::testing::store::MemoryHarness;
//!
//!     onceward::store_conformance!(MemoryHarness::new());
//! }
//! ```

pub mod audit;
pub mod batches;
mod case;
pub mod checkpoints;
pub mod claims;
pub mod completions;
pub mod failures;
pub mod fencing;
mod harness;
mod macros;
pub mod marks;
pub mod mismatches;
pub mod races;
pub mod records;
pub mod redrives;
pub mod repeats;
pub mod shared_transactions;
pub mod transactions;

pub use harness::{CheckpointHarness, MemoryHarness, StoreHarness, Timing, TransactionalHarness};
