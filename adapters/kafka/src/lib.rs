//! Kafka source and publisher for onceward: records of topics, delivered with parallel keys and committed without gaps.
//!
//! [`KafkaConsumer`] polls on a thread of its own, so that a slow handler is never evicted from its group, and commits for
//! each partition the offset before which everything is settled, never one beyond. A partition that is taken away is
//! drained for a bounded time and committed before it goes; what comes later for it settles nothing. [`KafkaPublisher`]
//! returns once all in-sync replicas have the message. [`KafkaTransform`] produces the results of records in transactions that
//! carry their offsets: each record once. [`KafkaEffects`] commits effects in a database together with their positions: each
//! record once.
//!
//! Deduplication by key is the store's work.

mod acker;
mod assignment;
mod begin;
mod burst;
mod config;
mod consumer;
mod context;
mod effects;
mod error;
mod facts;
mod flow;
mod leaving;
mod letter;
mod log;
mod message;
#[cfg(test)]
mod mocked;
mod native;
mod outgoing;
mod overseer;
mod partition;
mod password;
mod pending;
mod place;
mod plaintext;
#[cfg(feature = "plugin")]
pub mod plugin;
mod poll;
mod probe;
mod publisher;
mod reach;
mod refused;
mod reset;
mod retention;
mod retry;
mod shared;
mod stamp;
mod task;
mod transform;
mod trouble;
mod watch;
mod watermark;

pub use config::{KafkaConfig, TopicConfig};
pub use consumer::KafkaConsumer;
pub use effects::{EffectKeys, EffectsConfig, EffectsSummary, KafkaEffects};
pub use facts::{SourceFacts, TopicFacts};
pub use publisher::KafkaPublisher;
pub use retry::RetryTopic;
pub use transform::{KafkaTransform, Transform, TransformConfig, TransformSummary};
