//! Processes Kafka records in transactions that carry their offsets, each record once.
//!
//! | runner | consumes | commits, in one transaction | store |
//! |---|---|---|---|
//! | [`KafkaTransform`] | topics | records in other topics, and the consumed offsets | none |
//! | [`KafkaEffects`] | topics | effects in a database, and the positions of the records | a [`PositionStore`](onceward::store::PositionStore), such as Postgres |
//!
//! Both run beside the pipeline of [onceward](https://docs.rs/onceward), on the source of
//! [`onceward-kafka`](https://docs.rs/onceward-kafka). They deduplicate by position: a record that a producer has sent twice is two
//! records, unless [`KafkaEffects`] is given [`EffectKeys`].

mod dead_letter;
mod effects;
mod ready_first;
mod transform;

pub use effects::{EffectKeys, EffectsConfig, EffectsSummary, KafkaEffects};
pub use transform::{KafkaTransform, Transform, TransformConfig, TransformSummary};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct KafkaTransactionsReadme;
