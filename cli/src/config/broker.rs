//! What a client needs of a broker, whichever table it stands in: sources, publish handlers and the outbox share it.

use std::path::Path;

use super::address::Address;
use super::properties::Properties;
use super::table::Credentials;

/// A RabbitMQ broker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RabbitmqBroker<'a> {
    /// Where it is.
    pub url: &'a Address,
    /// The authorities that may have signed its certificate.
    pub ca_file: Option<&'a Path>,
    /// How the client proves who it is, where that is not in the URL.
    pub credentials: Credentials<'a>,
    /// Whether a login may go readably to another host.
    pub allow_plaintext: bool,
}

/// A Kafka cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KafkaCluster<'a> {
    /// The first brokers to ask.
    pub brokers: &'a [Address],
    /// Properties of librdkafka.
    pub properties: &'a Properties,
    /// How the client proves who it is.
    pub credentials: Credentials<'a>,
    /// Whether a login may go readably to another host.
    pub allow_plaintext: bool,
}

/// Where SQS is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SqsPlace<'a> {
    /// The region, unless the standard AWS chain decides.
    pub region: Option<&'a str>,
    /// Another endpoint than AWS's.
    pub endpoint: Option<&'a Address>,
    /// Whether requests may go readably to another host.
    pub allow_plaintext: bool,
}
