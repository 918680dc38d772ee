//! Kafka source and publisher for [onceward](https://docs.rs/onceward): records with parallel keys, offsets committed without
//! gaps.
//!
//! [`KafkaConsumer`] polls on a thread of its own, so that a slow handler never costs the membership of its group. For each
//! partition it commits the offset before which every record is settled. A revoked partition is drained for a bounded time and
//! committed; later settlements have no effect. [`KafkaPublisher`] confirms a message once all in-sync replicas have it.
//!
//! Deduplication by key is the store's job. Transactions that carry offsets are in the crate `onceward-kafka-transactions`.
//!
//! ```text
//!  broker ──records──▶ poll thread ──▶ ConsumerState ──receive──▶ pipeline
//!    ▲                  commits,        partitions,                  │
//!    └───── offsets ─── rebalances ◀─── watermarks ◀───settle────────┘
//! ```

mod acker;
mod auth;
mod client;
mod client_config;
mod config;
mod connection;
mod consumer;
mod error;
mod flow;
mod handle;
mod inspect;
#[doc(hidden)]
pub mod internal;
mod letters;
mod log_change;
mod log_id;
mod message;
#[cfg(test)]
mod mock_tests;
mod monitor;
#[cfg(feature = "plugin")]
pub mod plugin;
mod poll;
mod publisher;
mod record;
mod retention;
mod retry;
mod start_offsets;
mod state;

/// The client crate, in the version whose `ClientConfig` `from_client` takes.
pub use rdkafka;

pub use config::{KafkaConfig, TopicConfig};
pub use connection::KafkaConnection;
pub use consumer::KafkaConsumer;
pub use inspect::{GroupStatus, TopicStatus};
pub use letters::KafkaLetters;
pub use publisher::KafkaPublisher;
pub use retry::topic::RetryTopic;

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct KafkaReadme;
