//! Links from the spans of duplicates to the span of the delivery that completed their key: [`DuplicateLinks`].

use onceward::store::TraceContext;
use onceward::telemetry::Observer;
use opentelemetry::trace::{SpanContext, TraceFlags, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::traces::ids_of;

/// Keeps the ids of sampled spans with their completions, and links the spans of duplicates to them.
#[derive(Debug)]
pub(in crate::telemetry) struct DuplicateLinks;

impl Observer for DuplicateLinks {
    fn trace_context(&self, span: &Span) -> Option<TraceContext> {
        let (trace_id, span_id) = ids_of(span)?;
        TraceContext::new(trace_id, span_id)
    }

    fn duplicate(&self, span: &Span, first: TraceContext) {
        let (trace_id, span_id) = (first.trace_id().into(), first.span_id().into());
        // Only sampled ones are kept.
        let flags = TraceFlags::SAMPLED;
        span.add_link(SpanContext::new(trace_id, span_id, flags, true, TraceState::default()));
    }
}
