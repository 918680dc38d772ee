//! Spans of deliveries, after the conventions of OpenTelemetry for messaging: [`delivery_span`].

use tracing::Span;
use tracing::field::{Empty, display};

use crate::message::Message;

/// The target of all spans of a pipeline, by which a subscriber finds them.
pub const TRACE_TARGET: &str = "onceward::trace";

/// The span of one delivery, from its receipt to its settlement, for an [`Observer`](super::Observer) that wants it. `system`
/// is the name of the broker in the conventions: `rabbitmq`, `kafka`, `aws_sqs`.
///
/// The pipeline makes the spans `claim`, `handle`, `complete` and `settle` within it, and records key, attempt and outcome.
pub fn delivery_span(system: &str, message: &Message) -> Span {
    let destination = message.origin().unwrap_or_default();
    let id = message.id().map(String::from_utf8_lossy);
    let span = tracing::info_span!(
        target: TRACE_TARGET,
        parent: None,
        "process",
        otel.name = format!("process {destination}"),
        otel.kind = "consumer",
        otel.status_code = Empty,
        messaging.system = system,
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = destination,
        messaging.message.id = Empty,
        messaging.message.body.size = message.payload().len(),
        messaging.destination.partition.id = Empty,
        messaging.kafka.offset = Empty,
        onceward.key = Empty,
        onceward.outcome = Empty,
    );
    if let Some(id) = id {
        span.record("messaging.message.id", &*id);
    }
    if let Some(position) = message.position() {
        span.record("messaging.destination.partition.id", display(position.partition));
        if system == "kafka" {
            span.record("messaging.kafka.offset", position.offset);
        }
    }
    span
}
