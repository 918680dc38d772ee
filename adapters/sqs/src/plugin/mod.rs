//! SQS in the configuration of the `onceward` program: `[source.sqs]`, `[handler.publish.sqs]` and `[outbox.sqs]`.

mod connection;
mod relay;
mod source;
mod target;

pub use relay::SqsRelay as Relay;
pub use source::SqsSource as Source;
pub use target::SqsTarget as Target;
