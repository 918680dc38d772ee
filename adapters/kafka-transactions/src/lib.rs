//! Records of Kafka topics processed in transactions that carry their offsets: each record once.
//!
//! [`KafkaTransform`] produces the results of records in Kafka transactions. [`KafkaEffects`] commits effects in a database
//! together with the positions of their records.

mod dead_letter;
mod effects;
mod transform;

pub use effects::{EffectKeys, EffectsConfig, EffectsSummary, KafkaEffects};
pub use transform::{KafkaTransform, Transform, TransformConfig, TransformSummary};
