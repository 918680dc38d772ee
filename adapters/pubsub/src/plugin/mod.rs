//! Pub/Sub in the configuration of the `onceward` program: `[source.pubsub]`, `[handler.publish.pubsub]` and
//! `[outbox.pubsub]`.

mod advice;
mod connection;
mod findings;
mod relay;
mod source;
mod target;
mod temporary;

use onceward_plugin::LogRule;

pub use connection::PubsubLogin as Login;
pub use findings::FINDINGS;
pub use relay::PubsubRelay as Relay;
pub use source::PubsubSource as Source;
pub use target::PubsubTarget as Target;

/// The log lines of the client library, which repeat ours, and of the transport below it.
pub const LOG_RULES: &[LogRule] = &[LogRule::new("google_cloud", "error"), LogRule::new("tonic", "error")];
