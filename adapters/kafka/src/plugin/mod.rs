//! Kafka in the configuration of the `onceward` program: `[source.kafka]`, `[handler.publish.kafka]` and `[outbox.kafka]`.

mod cluster;
mod findings;
mod inspect;
mod properties;
mod relay;
mod source;
mod target;
mod temporary;
#[cfg(test)]
mod tests;

use onceward_plugin::LogRule;

pub use findings::FINDINGS;
pub use properties::Properties;
pub use relay::KafkaRelay as Relay;
pub use source::KafkaSource as Source;
pub use target::KafkaTarget as Target;

/// The log lines of the client library.
pub const LOG_RULES: &[LogRule] = &[LogRule::new("rdkafka", "off")];
