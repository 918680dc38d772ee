//! What librdkafka logs, as events of this process's log: [`Traced`].

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;

/// A context that hands the client's lines on. Lost connections are no warnings: the client comes back by itself, and who
/// waits for it says so.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traced;

impl ClientContext for Traced {
    fn log(&self, level: Level, facility: &str, line: &str) {
        match level {
            // A property that is of no use for this kind of client.
            _ if facility == "CONFWARN" => tracing::debug!(facility, "{line}"),
            Level::Emerg | Level::Alert | Level::Critical => tracing::error!(facility, "{line}"),
            Level::Error | Level::Warning => tracing::warn!(facility, "{line}"),
            Level::Notice | Level::Info | Level::Debug => tracing::debug!(facility, "{line}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "{reason}");
    }
}

impl ConsumerContext for Traced {}

impl ProducerContext for Traced {
    type DeliveryOpaque = ();

    /// For producers with transactions: what cannot be delivered fails its transaction.
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            tracing::debug!(%error, "a record of a transaction was not delivered");
        }
    }
}
