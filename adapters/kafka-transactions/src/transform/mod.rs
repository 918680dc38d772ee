//! Transformations of records into records, in Kafka transactions.

mod assignment;
mod batch;
mod config;
mod function;
mod offsets;
mod producing_thread;
mod rejections;
mod runner;
mod running_transaction;
mod send_groups;
mod source;
mod summary;
mod transactions;
mod worker;

pub use config::TransformConfig;
pub use function::Transform;
pub use runner::KafkaTransform;
pub use summary::TransformSummary;
