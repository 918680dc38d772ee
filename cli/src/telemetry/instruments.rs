//! Histograms and counters by origin, reason or outcome: [`Instruments`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use onceward::store::Reason;
use onceward::telemetry::{
    Counter, Counters, Distribution, DistributionCounts, LetterSighting, Measure, Observer,
};
use parking_lot::Mutex;
#[cfg(feature = "otlp")]
use tracing::Span;

use super::family::{Label, MetricExemplar, MetricFamilies, MetricKind, MetricValue};
use super::recent::RecentLetters;

/// The most origins with counters of their own; those beyond share one, without a name.
const MOST_ORIGINS: usize = 1_000;

/// How many deliveries of an origin ended in each of [`Counters::ENDS`].
type EndCounts = [u64; Counters::ENDS.len()];

/// What a pipeline measures.
#[derive(Debug)]
pub(crate) struct Instruments {
    source: &'static str,
    /// The broker's name in OpenTelemetry's conventions.
    #[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "read by the otlp feature only"))]
    system: &'static str,
    /// One for each [`Measure`].
    histograms: Vec<Histogram>,
    deliveries: Mutex<HashMap<Arc<str>, EndCounts>>,
    /// One for each [`Reason`].
    dead_letters: Vec<AtomicU64>,
    pub(super) recent_letters: RecentLetters,
}

#[derive(Debug)]
struct Histogram {
    measure: Measure,
    values: Distribution,
    /// The last one of each bucket that has one.
    exemplars: Mutex<Vec<MetricExemplar>>,
}

impl Histogram {
    fn new(measure: Measure) -> Self {
        Self { measure, values: Distribution::new(measure), exemplars: Mutex::default() }
    }

    fn sample(&self) -> (Vec<Label>, MetricValue) {
        let labels = self.measure.label().into_iter().map(|(name, value)| (name, Cow::Borrowed(value)));
        (labels.collect(), MetricValue::Distribution(self.values.read(), self.exemplars.lock().clone()))
    }
}

impl Instruments {
    /// Instruments of a run that reads from the adapter `source`, which OpenTelemetry calls `system`.
    pub(crate) fn new(source: &'static str, system: &'static str) -> Self {
        Self {
            source,
            system,
            histograms: Measure::ALL.iter().copied().map(Histogram::new).collect(),
            deliveries: Mutex::default(),
            dead_letters: Reason::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            recent_letters: RecentLetters::default(),
        }
    }

    /// Adds what they show now.
    pub(super) fn read(&self, families: &mut MetricFamilies) {
        for family in self.histograms.chunk_by(|one, next| one.measure.name() == next.measure.name()) {
            let measure = family[0].measure;
            let samples = family.iter().map(Histogram::sample);
            families.add(measure.name(), measure.help(), MetricKind::Histogram, samples);
        }
        let deliveries = self.deliveries.lock();
        let samples = deliveries.iter().flat_map(|(origin, ends)| self.ended_at(origin, ends));
        families.add(
            "deliveries",
            "Deliveries that ended, by the adapter and the queue, topic or file that they came from, and by their end.",
            MetricKind::Counter,
            samples,
        );
        // All reasons are known: a counter that begins at zero has its first event counted by `rate`.
        let samples = Reason::ALL.iter().zip(&self.dead_letters).map(|(reason, count)| {
            let label = ("reason", Cow::Borrowed(reason.as_str()));
            (vec![label], MetricValue::Whole(count.load(Ordering::Relaxed)))
        });
        families.add("dead_letters", "Confirmed dead letters, by reason.", MetricKind::Counter, samples);
    }

    /// What was counted of `measure`.
    pub(super) fn counted(&self, measure: Measure) -> DistributionCounts {
        self.histograms[measure as usize].values.read()
    }

    fn ended_at(&self, origin: &str, ends: &EndCounts) -> Vec<(Vec<Label>, MetricValue)> {
        let counted = Counters::ENDS.iter().zip(ends).filter(|(_, count)| **count > 0);
        let sample = |(end, count): (&Counter, &u64)| {
            let labels = vec![
                ("source", Cow::Borrowed(self.source)),
                ("origin", Cow::Owned(origin.to_owned())),
                ("outcome", Cow::Borrowed(end.name())),
            ];
            (labels, MetricValue::Whole(*count))
        };
        counted.map(sample).collect()
    }
}

impl Observer for Instruments {
    fn observe(&self, measure: Measure, values: &[f64]) {
        self.histograms[measure as usize].values.add(values);
    }

    fn observe_counted(&self, measure: Measure, values: &[(f64, u64)]) {
        self.histograms[measure as usize].values.add_counted(values);
    }

    #[cfg(feature = "otlp")]
    fn exemplar(&self, measure: Measure, value: f64, span: &Span) {
        let Some((trace_id, span_id)) = super::otlp::traces::ids_of(span) else { return };
        let bounds = measure.buckets();
        let bucket = bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len());
        let at = std::time::SystemTime::now();
        let mut exemplars = self.histograms[measure as usize].exemplars.lock();
        exemplars.retain(|known| known.bucket != bucket);
        exemplars.push(MetricExemplar { bucket, value, trace_id, span_id, at });
    }

    fn ended(&self, origin: Option<&str>, outcome: Counter, count: u64) {
        let Some(end) = Counters::ENDS.iter().position(|end| *end == outcome) else { return };
        let name = origin.unwrap_or_default();
        let mut deliveries = self.deliveries.lock();
        let has_room = deliveries.len() < MOST_ORIGINS || deliveries.contains_key(name);
        let name = if has_room { name } else { "" };
        match deliveries.get_mut(name) {
            Some(ends) => ends[end] += count,
            None => deliveries.entry(name.into()).or_default()[end] += count,
        }
    }

    #[cfg(feature = "otlp")]
    fn span(&self, message: &onceward::Message) -> Span {
        super::otlp::traces::span(self.system, message)
    }

    fn dead_lettered(&self, letter: &LetterSighting<'_>) {
        if let Some(index) = Reason::ALL.iter().position(|known| *known == letter.reason) {
            self.dead_letters[index].fetch_add(1, Ordering::Relaxed);
        }
        self.recent_letters.add(letter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_beyond_the_limit_share_one_without_a_name() {
        let instruments = Instruments::new("memory", "memory");
        for number in 0..MOST_ORIGINS + 5 {
            instruments.ended(Some(&format!("queue-{number}")), Counter::Handled, 2);
        }
        instruments.ended(Some("queue-1"), Counter::Handled, 1);
        let deliveries = instruments.deliveries.lock();
        let handled = |name: &str| deliveries.get(name).map(|ends| ends.iter().sum::<u64>());
        assert_eq!((handled("queue-1"), handled("")), (Some(3), Some(10)));
        assert_eq!(deliveries.len(), MOST_ORIGINS + 1);
    }
}
