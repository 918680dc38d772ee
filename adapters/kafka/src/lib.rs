//! Kafka source and publisher for onceward: records of topics, delivered with parallel keys and committed without gaps.
//!
//! [`KafkaConsumer`] polls on a thread of its own, so that a slow handler is never evicted from its group, and commits for
//! each partition the offset before which everything is settled, never one beyond. A partition that is taken away is
//! drained for a bounded time and committed before it goes; what comes later for it settles nothing. [`KafkaPublisher`]
//! returns once all in-sync replicas have the message.
//!
//! What it does not do: Kafka transactions, retry topics, `processed_offsets`. Deduplication is the store's work.

mod acker;
mod config;
mod consumer;
mod context;
mod error;
mod message;
mod partition;
mod poll;
mod publisher;
mod shared;
mod watermark;

pub use config::{KafkaConfig, TopicConfig};
pub use consumer::KafkaConsumer;
pub use publisher::KafkaPublisher;
