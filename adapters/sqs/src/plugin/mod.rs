//! SQS in the configuration of the `onceward` program: `[source.sqs]`, `[handler.publish.sqs]` and `[outbox.sqs]`.

mod connection;
mod findings;
mod relay;
mod source;
mod target;
mod temporary;

use onceward_plugin::LogRule;

pub use findings::FINDINGS;
pub use relay::SqsRelay as Relay;
pub use source::SqsSource as Source;
pub use target::SqsTarget as Target;

/// The log lines of the client library.
pub const LOG_RULES: &[LogRule] = &[LogRule::new("aws", "error")];
