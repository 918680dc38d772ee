//! Kafka source and publisher for onceward: records of topics, delivered with parallel keys and committed without gaps.
//!
//! [`KafkaConsumer`] polls on a thread of its own, so that a slow handler is never evicted from its group, and commits for
//! each partition the offset before which everything is settled, never one beyond. A partition that is taken away is
//! drained for a bounded time and committed before it goes; what comes later for it settles nothing. [`KafkaPublisher`]
//! returns once all in-sync replicas have the message.
//!
//! Transactions that carry offsets are in the crate `onceward-kafka-transactions`.
//!
//! Deduplication by key is the store's work.

mod acker;
mod auth;
mod client;
mod config;
mod consumer;
mod error;
mod flow;
mod inspect;
#[doc(hidden)]
pub mod internal;
mod log_id;
mod message;
#[cfg(test)]
mod mock_tests;
mod monitor;
mod poll;
mod publisher;
mod record;
mod retention;
mod retry;
mod start_offsets;
mod state;

pub use config::{KafkaConfig, TopicConfig};
pub use consumer::KafkaConsumer;
pub use inspect::{SourceFacts, TopicFacts};
pub use publisher::KafkaPublisher;
pub use retry::forwarder::RetryTopic;
