//! Batches of spans, of which none is lost without being counted: [`processor`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};

use super::losses::spans_dropped;
use crate::config::Lookup;

/// The variable that limits how many spans wait for their export.
const LIMIT: &str = "OTEL_BSP_MAX_QUEUE_SIZE";
const DEFAULT_LIMIT: usize = 2_048;

/// The SDK's batches in front of `exporter`. The SDK drops spans beyond its limit and does not count them where a program
/// can read it, so that this processor applies the limit itself.
pub(super) fn processor<E: SpanExporter + 'static>(
    exporter: E,
    env: Lookup<'_>,
) -> impl SpanProcessor + use<E> {
    let limit = env(LIMIT).and_then(|text| text.trim().parse().ok()).filter(|limit| *limit > 0);
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    let waiting = Arc::new(AtomicUsize::new(0));
    let exporter = CountedExporter { exporter, waiting: Arc::clone(&waiting) };
    let config = BatchConfigBuilder::default().with_max_queue_size(limit).build();
    CountedSpans { batches: BatchSpanProcessor::new(exporter, config), waiting, limit }
}

/// Passes spans on to their batch while fewer than `limit` wait.
#[derive(Debug)]
struct CountedSpans<P> {
    batches: P,
    /// Spans in the queue, and those of the batch that is being exported.
    waiting: Arc<AtomicUsize>,
    limit: usize,
}

impl<P: SpanProcessor> SpanProcessor for CountedSpans<P> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= self.limit {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            spans_dropped(1);
            return;
        }
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Notes the end of each export.
#[derive(Debug)]
struct CountedExporter<E> {
    exporter: E,
    waiting: Arc<AtomicUsize>,
}

impl<E: SpanExporter> SpanExporter for CountedExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let exported = self.exporter.export(batch).await;
        self.waiting.fetch_sub(count, Ordering::AcqRel);
        if exported.is_err() {
            spans_dropped(count);
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use parking_lot::Mutex;

    use super::super::losses::{dropped_spans, mark_exported};
    use super::super::signal::Signal;
    use super::*;

    /// A collector that answers while its lock is free, and takes nothing.
    #[derive(Debug)]
    struct Refusing(Arc<Mutex<()>>);

    impl SpanExporter for Refusing {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            drop(self.0.lock());
            Err(OTelSdkError::InternalFailure("refused".to_owned()))
        }
    }

    #[test]
    fn spans_beyond_the_limit_and_those_that_are_refused_are_counted_as_dropped() {
        mark_exported(Signal::Traces);
        let dropped = || dropped_spans().unwrap();
        let before = dropped();
        let env = |name: &str| (name == LIMIT).then(|| "3".to_owned());
        let silence = Arc::new(Mutex::new(()));
        let processor = processor(Refusing(Arc::clone(&silence)), &env);
        let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
        let tracer = provider.tracer("test");
        let end_spans = |count| (0..count).for_each(|_| drop(tracer.start("span")));
        let silent = silence.lock();
        end_spans(3);
        assert_eq!(dropped(), before, "they wait");
        end_spans(2);
        assert_eq!(dropped(), before + 2, "there is no place for them");
        drop(silent);
        provider.force_flush().ok();
        assert_eq!(dropped(), before + 5, "none was taken");
        end_spans(1);
        provider.shutdown().ok();
        assert_eq!(dropped(), before + 6, "its place was free");
    }
}
