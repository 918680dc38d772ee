//! Histograms and counters by origin, reason or outcome: [`Instruments`].

use std::fmt;
use std::sync::Arc;

use onceward::store::Reason;
use onceward::telemetry::{Counter, Distribution, DistributionCounts, Measure, Observer};
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter as Count;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

/// The most origins with counters of their own; those beyond share one, without a name.
const MOST_ORIGINS: usize = 1_000;

type Label = (&'static str, &'static str);

type Histograms = Family<Vec<Label>, Histogram, Buckets>;

/// What a pipeline measures. Its parts are shared with the registry that serves them.
#[derive(Debug)]
pub(crate) struct Instruments {
    source: &'static str,
    /// The broker's name in OpenTelemetry's conventions.
    #[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "read by the otlp feature only"))]
    system: &'static str,
    /// One for each [`Measure`].
    histograms: Vec<Histogram>,
    families: Vec<(Measure, Histograms)>,
    deliveries: Family<Delivered, Count>,
    dead_letters: Family<Vec<Label>, Count>,
    origins: Mutex<Vec<Arc<str>>>,
}

/// The labels of a delivery that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Delivered {
    source: &'static str,
    origin: Arc<str>,
    outcome: &'static str,
}

/// A distribution that the registry serves.
#[derive(Clone, Debug)]
struct Histogram(Arc<Distribution>);

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let counted = self.0.read();
        encoder.encode_histogram::<NoLabelSet>(counted.sum, counted.count, &counted.buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// Makes the histograms of a measure.
#[derive(Clone, Debug)]
struct Buckets(Measure);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram(Arc::new(Distribution::new(self.0)))
    }
}

impl Instruments {
    /// Instruments of a run that reads from the adapter `source`, which OpenTelemetry calls `system`.
    pub(crate) fn new(source: &'static str, system: &'static str) -> Self {
        let mut families: Vec<(Measure, Histograms)> = Vec::new();
        let mut histograms = Vec::new();
        for measure in Measure::ALL {
            if families.last().is_none_or(|(last, _)| last.name() != measure.name()) {
                families.push((*measure, Family::new_with_constructor(Buckets(*measure))));
            }
            if let Some((_, family)) = families.last() {
                let labels: Vec<_> = measure.label().into_iter().collect();
                histograms.push(family.get_or_create(&labels).clone());
            }
        }
        let (deliveries, dead_letters) = (Family::default(), Family::<Vec<Label>, Count>::default());
        // All reasons are known: a counter that begins at zero has its first event counted by `rate`.
        for reason in Reason::ALL {
            drop(dead_letters.get_or_create(&vec![("reason", reason.as_str())]));
        }
        Self { source, system, histograms, families, deliveries, dead_letters, origins: Mutex::default() }
    }

    /// Has `registry` serve them.
    pub(super) fn register(&self, registry: &mut Registry) {
        for (measure, family) in &self.families {
            registry.register(measure.name(), trimmed(measure.help()), family.clone());
        }
        registry.register(
            "deliveries",
            "Deliveries that ended, by the adapter and the queue, topic or file that they came from, and by their end",
            self.deliveries.clone(),
        );
        registry.register("dead_letters", "Confirmed dead letters, by reason", self.dead_letters.clone());
    }

    /// What was counted of `measure`.
    pub(super) fn counted(&self, measure: Measure) -> DistributionCounts {
        self.histograms[measure as usize].0.read()
    }

    fn origin(&self, name: &str) -> Arc<str> {
        let mut origins = self.origins.lock();
        if let Some(known) = origins.iter().find(|known| &***known == name) {
            return Arc::clone(known);
        }
        if origins.len() >= MOST_ORIGINS {
            return "".into();
        }
        let name: Arc<str> = name.into();
        origins.push(Arc::clone(&name));
        name
    }
}

/// The registry adds the full stop.
fn trimmed(help: &str) -> &str {
    help.trim_end_matches('.')
}

impl Observer for Instruments {
    fn observe(&self, measure: Measure, values: &[f64]) {
        self.histograms[measure as usize].0.add(values);
    }

    fn ended(&self, origin: Option<&str>, outcome: Counter, count: u64) {
        let origin = self.origin(origin.unwrap_or_default());
        let labels = Delivered { source: self.source, origin, outcome: outcome.name() };
        self.deliveries.get_or_create(&labels).inc_by(count);
    }

    #[cfg(feature = "otlp")]
    fn span(&self, message: &onceward::Message) -> tracing::Span {
        super::traces::span(self.system, message)
    }

    fn dead_lettered(&self, reason: Reason) {
        self.dead_letters.get_or_create(&vec![("reason", reason.as_str())]).inc();
    }
}
