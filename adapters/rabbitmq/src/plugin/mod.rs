//! RabbitMQ in the configuration of the `onceward` program: `[source.rabbitmq]`, `[handler.publish.rabbitmq]` and
//! `[outbox.rabbitmq]`.

mod advice;
mod connection;
mod findings;
mod relay;
mod source;
mod target;
mod temporary;

use onceward_plugin::LogRule;

pub use findings::FINDINGS;
pub use relay::RabbitmqRelay as Relay;
pub use source::RabbitmqSource as Source;
pub use target::RabbitmqTarget as Target;

/// The log lines of the client library.
///
/// The AMQP client logs whole returned messages, and frames with passwords and payloads at `trace`.
pub const LOG_RULES: &[LogRule] = &[
    LogRule { has_secrets_at_trace: true, ..LogRule::new("amq_protocol", "off") },
    LogRule {
        has_secrets_at_trace: true,
        never: &["lapin::returned_messages"],
        ..LogRule::new("lapin", "off")
    },
];
