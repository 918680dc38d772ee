//! What those who write adapters, or test their own pipelines, need: conformance suites, an in-memory broker, seeded
//! faults.

mod memory_broker;
pub mod store;

pub use memory_broker::{Habits, MemoryBroker, MemoryConsumer};
