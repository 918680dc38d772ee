//! `[outbox]`: where a relay sends what handlers put into the outbox.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::address::Address;
use super::duration::HumanDuration;
use super::table::{secs, table};

/// What `onceward outbox relay` does. The outbox itself is the store's, and needs no table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxConfig {
    /// How long rows that were published are kept, up to 3650d.
    pub keep: HumanDuration,
    /// The RabbitMQ to publish to; the source's own broker when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rabbitmq: Option<OutboxRabbitmq>,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self { keep: secs::<3_600>(), rabbitmq: None }
    }
}

table! {
    /// Another RabbitMQ than the source's. Each row names its queue, or `exchange/routing-key`.
    OutboxRabbitmq [credentials] {
        /// Where the broker is: `amqp://host:5672/%2f`, or `amqps://…` for TLS.
        pub url: Address,
    }
}
