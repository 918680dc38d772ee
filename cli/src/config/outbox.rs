//! `[outbox]`: where a relay sends what handlers put into the outbox.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::HumanDuration;
use super::table::{secs, table};

/// What `onceward outbox relay` does. The outbox itself is the store's, and needs no table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxConfig {
    /// How long rows that were published are kept, up to 3650d.
    pub keep: HumanDuration,
    /// The RabbitMQ to publish to. At most one broker may be named; the source's own is meant when none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rabbitmq: Option<OutboxRabbitmq>,
    /// The Kafka cluster to publish to, instead of the source's own broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<OutboxKafka>,
    /// The SQS to publish to, instead of the source's own broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqs: Option<OutboxSqs>,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self { keep: secs::<3_600>(), rabbitmq: None, kafka: None, sqs: None }
    }
}

impl OutboxConfig {
    /// The broker that is named, the first of them in the order of the fields; `None`: the source's own.
    pub fn target(&self) -> Option<OutboxTarget<'_>> {
        self.targets().next()
    }

    /// All that are named. More than one is refused.
    pub(super) fn targets(&self) -> impl Iterator<Item = OutboxTarget<'_>> {
        let rabbitmq = self.rabbitmq.as_ref().map(OutboxTarget::Rabbitmq);
        let kafka = self.kafka.as_ref().map(OutboxTarget::Kafka);
        rabbitmq.into_iter().chain(kafka).chain(self.sqs.as_ref().map(OutboxTarget::Sqs))
    }
}

/// The broker that a relay publishes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OutboxTarget<'a> {
    /// `[outbox.rabbitmq]`.
    Rabbitmq(&'a OutboxRabbitmq),
    /// `[outbox.kafka]`.
    Kafka(&'a OutboxKafka),
    /// `[outbox.sqs]`.
    Sqs(&'a OutboxSqs),
}

impl OutboxTarget<'_> {
    /// The dotted path of its table, such as `outbox.kafka`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Rabbitmq(_) => "outbox.rabbitmq",
            Self::Kafka(_) => "outbox.kafka",
            Self::Sqs(_) => "outbox.sqs",
        }
    }
}

table! {
    /// Another RabbitMQ than the source's. Each row names its queue, or `exchange/routing-key`.
    OutboxRabbitmq [rabbitmq] {}
}

table! {
    /// Another Kafka cluster than the source's. Each row names its topic; its order key is the record key.
    OutboxKafka [kafka] {}
}

table! {
    /// Another SQS than the source's. Each row names the URL of its queue; in a FIFO queue its order key is the group.
    OutboxSqs [sqs] {}
}
