//! The conformance suite of brokers: a named check for each sentence of the contracts in [`Consumer`] and [`Acker`].
//!
//! An adapter passes when [`broker_conformance!`](crate::broker_conformance) is green with a [`BrokerHarness`] of its
//! own. The checks are functions, each of which panics if its sentence does not hold; the macro makes one test of each.
//! The suite does not cover the effects of a lost connection or a killed process, nor speed.
//!
//! ```
//! # #[cfg(any())]
//! mod conformance {
//!     use onceward::testing::broker::MemoryBrokerHarness;
//!
//!     onceward::broker_conformance!(MemoryBrokerHarness::new());
//! }
//! ```
//!
//! [`Consumer`]: crate::adapter::Consumer
//! [`Acker`]: crate::adapter::Acker

mod case;
pub mod deliveries;
pub mod flow;
mod harness;
mod macros;
pub mod settlements;

pub use harness::{BrokerHarness, MemoryBrokerHarness};
