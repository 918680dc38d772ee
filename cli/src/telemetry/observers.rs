//! Passes the measurements of a pipeline to several observers: [`Observers`].

use std::sync::Arc;

use onceward::Message;
use onceward::store::TraceContext;
use onceward::telemetry::{Counter, Counters, KeySighting, LetterSighting, Measure, Observer};
use tracing::Span;

/// Several observers of one pipeline.
pub(super) struct Observers(pub(super) Vec<Arc<dyn Observer>>);

impl Observer for Observers {
    fn observe(&self, measure: Measure, values: &[f64]) {
        self.0.iter().for_each(|each| each.observe(measure, values));
    }

    fn observe_counted(&self, measure: Measure, values: &[(f64, u64)]) {
        self.0.iter().for_each(|each| each.observe_counted(measure, values));
    }

    fn ended(&self, origin: Option<&str>, outcome: Counter, count: u64) {
        self.0.iter().for_each(|each| each.ended(origin, outcome, count));
    }

    fn exemplar(&self, measure: Measure, value: f64, span: &Span) {
        self.0.iter().for_each(|each| each.exemplar(measure, value, span));
    }

    fn dead_lettered(&self, letter: &LetterSighting<'_>) {
        self.0.iter().for_each(|each| each.dead_lettered(letter));
    }

    fn sighted(&self, sighting: &KeySighting) {
        self.0.iter().for_each(|each| each.sighted(sighting));
    }

    /// The first span there is: a delivery has one.
    fn span(&self, message: &Message) -> Span {
        let spans = self.0.iter().map(|each| each.span(message));
        spans.into_iter().find(|span| !span.is_none()).unwrap_or_else(Span::none)
    }

    fn trace_context(&self, span: &Span) -> Option<TraceContext> {
        self.0.iter().find_map(|each| each.trace_context(span))
    }

    fn duplicate(&self, span: &Span, first: TraceContext) {
        self.0.iter().for_each(|each| each.duplicate(span, first));
    }

    fn report(&self, counters: &Counters) {
        self.0.iter().for_each(|each| each.report(counters));
    }
}
