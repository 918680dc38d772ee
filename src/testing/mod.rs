//! Tools for authors of adapters and for tests of pipelines: conformance suites, an in-memory broker and publisher,
//! seeded faults.

pub mod broker;
mod faults;
mod faulty_consumer;
mod faulty_store;
mod memory_broker;
mod memory_inbox;
mod memory_positions;
mod memory_publisher;
pub mod outbox;
mod process;
pub mod store;

pub use faults::{Call, Fault, FaultPlan, Faults, Operation};
pub use faulty_consumer::FaultyConsumer;
pub use faulty_store::FaultyStore;
pub use memory_broker::{Habits, MemoryBroker, MemoryConsumer};
pub use memory_inbox::{MemoryInbox, MemoryTransaction};
pub use memory_publisher::MemoryPublisher;
pub use process::Process;
