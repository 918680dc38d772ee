//! Measurements of a pipeline for the user's telemetry: [`Observer`], [`Measure`].

use tracing::Span;

use crate::message::Message;
use crate::store::TraceContext;
use crate::telemetry::{Counter, Counters, KeySighting, LetterSighting};

macro_rules! measures {
    ($(#[doc = $doc:literal] $variant:ident => $name:literal $(, $label:literal = $value:literal)?;)*) => {
        /// A quantity whose distribution matters. The name is the metric's, without its `onceward_`; times are in seconds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(usize)]
        pub enum Measure { $(#[doc = $doc] $variant,)* }

        impl Measure {
            /// All measures; those of one name follow each other.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The metric's name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The label by which measures of one name differ.
            pub const fn label(self) -> Option<(&'static str, &'static str)> {
                match self { $(Self::$variant => measures!(@label $($label = $value)?),)* }
            }

            /// One sentence for people who read the metric.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $doc.trim_ascii(),)* }
            }
        }
    };
    (@label) => { None };
    (@label $label:literal = $value:literal) => { Some(($label, $value)) };
}

measures! {
    /// Seconds from the receipt of a delivery to the first claim of its key.
    QueueWait => "queue_wait_seconds";
    /// Seconds of a store call that claims the keys of a batch.
    Claim => "claim_seconds";
    /// Seconds of a handler run.
    HandlerSucceeded => "handler_seconds", "outcome" = "succeeded";
    /// Seconds of a handler run.
    HandlerFailed => "handler_seconds", "outcome" = "failed";
    /// Seconds of a store call that writes the completions of a batch, or of the commit of a handler's transaction.
    Complete => "complete_seconds";
    /// Seconds of a call that settles a batch of deliveries at the broker.
    Settle => "settle_seconds";
    /// Attempts of a message that was handled or dead-lettered, its last one included.
    Attempts => "attempts";
    /// Seconds between the completion of a key and a duplicate of it. A duplicate older than the TTL is not recognised.
    DuplicateAge => "duplicate_age_seconds";
}

impl Measure {
    /// Upper bounds for the buckets of a histogram: of times from 0.5 ms to 5 min, of ages from 1 s to 30 d.
    pub const fn buckets(self) -> &'static [f64] {
        match self {
            Self::Attempts => &[1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0],
            Self::DuplicateAge => &[
                1.0,
                10.0,
                60.0,
                300.0,
                1_800.0,
                3_600.0,
                21_600.0,
                43_200.0,
                86_400.0,
                172_800.0,
                345_600.0,
                604_800.0,
                1_209_600.0,
                2_592_000.0,
            ],
            _ => &[
                0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
                60.0, 300.0,
            ],
        }
    }
}

/// Receives the measurements of a pipeline, for the telemetry of the program around it. Give it to
/// [`PipelineBuilder::observer`](crate::PipelineBuilder::observer). With the feature `metrics`, `MetricsObserver` passes
/// everything to the crate of that name.
///
/// The methods are called between the steps of the protocol, from several tasks at once: they must not block. A pipeline
/// without an observer measures no times.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use onceward::telemetry::{Measure, Observer};
///
/// /// The longest handler run, in milliseconds.
/// #[derive(Debug, Default)]
/// struct Slowest(AtomicU64);
///
/// impl Observer for Slowest {
///     fn observe(&self, measure: Measure, values: &[f64]) {
///         if measure == Measure::HandlerSucceeded {
///             for seconds in values {
///                 self.0.fetch_max((seconds * 1_000.0) as u64, Ordering::Relaxed);
///             }
///         }
///     }
/// }
/// ```
pub trait Observer: Send + Sync + 'static {
    /// Values of `measure`, in its unit.
    fn observe(&self, measure: Measure, values: &[f64]) {
        let _ = (measure, values);
    }

    /// Values of `measure`, each with how often it was observed: those of which a batch has many that are the same, as its waits and
    /// attempts. [`observe`](Self::observe) gets them unless this is overridden, which is cheaper for histograms.
    fn observe_counted(&self, measure: Measure, values: &[(f64, u64)]) {
        let each =
            |(value, count): &(f64, u64)| std::iter::repeat_n(*value, usize::try_from(*count).unwrap_or(0));
        self.observe(measure, &values.iter().flat_map(each).collect::<Vec<_>>());
    }

    /// One of the values that were observed last, and the span of its delivery: the slowest handler run of a batch, the longest
    /// wait of a batch, the age of a duplicate. A histogram can keep it as an exemplar. Called only where deliveries have
    /// [spans](Self::span).
    fn exemplar(&self, measure: Measure, value: f64, span: &Span) {
        let _ = (measure, value, span);
    }

    /// `count` deliveries of `origin` (queue, topic or file) ended as `outcome`, which is one of [`Counters::ENDS`].
    fn ended(&self, origin: Option<&str>, outcome: Counter, count: u64) {
        let _ = (origin, outcome, count);
    }

    /// A message was dead-lettered, and the letter is confirmed.
    fn dead_lettered(&self, letter: &LetterSighting<'_>) {
        let _ = letter;
    }

    /// The store was asked for the key of a delivery, in [observe mode](crate::pipeline::config::Mode::Observe): once for each
    /// delivery that has a key, and not for one that the store did not answer for.
    fn sighted(&self, sighting: &KeySighting) {
        let _ = sighting;
    }

    /// The span of a delivery, as [`delivery_span`](super::delivery_span) makes it, with the trace of its headers as parent
    /// if the subscriber knows how to set that. It ends when the delivery is settled. Without a span, as here, the pipeline
    /// makes none for the steps of the delivery either.
    fn span(&self, message: &Message) -> Span {
        let _ = message;
        Span::none()
    }

    /// The ids of `span`, which is that of a delivery whose handler has succeeded, to be kept with the completion of its key.
    /// `None`, as here: nothing is kept. Not called where deliveries have no spans.
    fn trace_context(&self, span: &Span) -> Option<TraceContext> {
        let _ = span;
        None
    }

    /// The delivery of `span` is a duplicate: `first` completed its key. OpenTelemetry has span links for that.
    fn duplicate(&self, span: &Span, first: TraceContext) {
        let _ = (span, first);
    }

    /// The counters and gauges, about once a second and once more when the run has ended.
    fn report(&self, counters: &Counters) {
        let _ = counters;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_have_metric_names_help_texts_and_growing_buckets() {
        for measure in Measure::ALL {
            assert!(measure.name().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
            assert!(measure.help().ends_with('.') && !measure.help().starts_with(' '), "{measure:?}");
            assert!(measure.buckets().is_sorted_by(|a, b| a < b), "{measure:?}");
        }
        for pair in Measure::ALL.windows(2).filter(|pair| pair[0].name() == pair[1].name()) {
            assert_eq!(pair[0].help(), pair[1].help());
            assert_ne!(pair[0].label(), pair[1].label());
        }
    }
}
