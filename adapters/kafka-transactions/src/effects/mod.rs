//! Effects of records in a database, committed together with their positions.

mod config;
mod keys;
mod owned_partitions;
mod part_plan;
mod partition_queues;
mod partition_worker;
mod purge;
mod runner;
mod settler;
mod summary;

pub use config::EffectsConfig;
pub use keys::EffectKeys;
pub use runner::KafkaEffects;
pub use summary::EffectsSummary;
