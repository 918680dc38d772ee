//! Passes the measurements of a pipeline to the crate `metrics`: [`MetricsObserver`].

use std::fmt;

use metrics::{Counter as MetricsCounter, Gauge, Histogram, Label, SharedString, Unit};

use super::{Counter, Counters, HandlerState, IntakePause, LetterSighting, Measure, Observer, SourceState};
use crate::key::Scope;

/// Passes everything that a pipeline measures and counts to the recorder of the crate `metrics`, under the names that the
/// `onceward` program serves: `onceward_handler_seconds`, `onceward_handled_total`, … Every metric has the label `scope`;
/// `onceward_deliveries_total` has `origin` and `outcome` as well.
///
/// ```
/// # #[cfg(feature = "testing")]
/// # {
/// use std::sync::Arc;
/// use onceward::telemetry::MetricsObserver;
/// use onceward::{Handled, KeySource, MemoryStore, Message, Pipeline, Scope, handler_fn, testing::MemoryBroker};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), onceward::Error> {
/// async fn charge(_app: (), _message: Message) -> Handled {
///     Ok(())
/// }
///
/// // Install your recorder first: an observer keeps the handles of the recorder that it finds.
/// let scope = Scope::parse("billing")?;
/// let broker = MemoryBroker::finite();
/// broker.publish(Message::builder("pay 7"));
/// let pipeline = Pipeline::builder(scope.clone(), broker.consumer(), Arc::new(MemoryStore::new()))
///     .keys([KeySource::PayloadHash])
///     .park_exhausted()
///     .observer(Arc::new(MetricsObserver::new(&scope)))
///     .handler(handler_fn((), charge))?;
/// assert_eq!(pipeline.run(Default::default()).await?.handled(), 1);
/// # Ok(()) }
/// # main().unwrap();
/// # }
/// ```
pub struct MetricsObserver {
    scope: SharedString,
    histograms: Vec<Histogram>,
    counters: Vec<MetricsCounter>,
    gauges: Vec<Gauge>,
    pauses: Vec<Gauge>,
}

type ReadGauge = fn(&Counters) -> f64;

/// Name, help text and value of each gauge.
const GAUGES: [(&str, &str, ReadGauge); 11] = [
    ("in_flight", "Deliveries received and not yet settled.", |counters| counters.in_flight() as f64),
    ("in_flight_bytes", "Bytes of deliveries received and not yet settled.", |counters| {
        counters.in_flight_bytes() as f64
    }),
    ("running", "Deliveries that are being claimed, wait for a slot, or are handled.", |counters| {
        counters.running() as f64
    }),
    ("waiting", "Deliveries in flight that cannot run yet.", |counters| counters.waiting() as f64),
    ("blocked_lanes", "Order keys or partitions whose first message waits and blocks others.", |counters| {
        counters.blocked_lanes() as f64
    }),
    ("oldest_unsettled_seconds", "Age in seconds of the oldest delivery in flight.", |counters| {
        counters.oldest_unsettled().unwrap_or_default().as_secs_f64()
    }),
    ("store_up", "1 while the store responds.", |counters| f64::from(u8::from(counters.is_store_up()))),
    ("handler_up", "1 while the handler is available, judging by its runs.", |counters| {
        f64::from(u8::from(counters.handler_state() == HandlerState::Up))
    }),
    ("breaker_open", "1 while the circuit breaker of the handler is open.", |counters| {
        f64::from(u8::from(counters.is_breaker_open()))
    }),
    ("source_up", "1 while the source can deliver.", |counters| {
        let is_up = counters.source().is_none_or(|source| source.state() == SourceState::Up);
        f64::from(u8::from(is_up))
    }),
    ("source_lag", "Messages waiting in the broker at the last observation.", |counters| {
        counters.source().and_then(|source| source.lag()).unwrap_or(0) as f64
    }),
];

impl MetricsObserver {
    /// An observer that passes on what happens in `scope` to the recorder that is installed now.
    pub fn new(scope: &Scope) -> Self {
        let scope = SharedString::from(scope.to_string());
        let own = || Label::new("scope", scope.clone());
        let histogram = |measure: &Measure| {
            let name = format!("onceward_{}", measure.name());
            let unit = if *measure == Measure::Attempts { Unit::Count } else { Unit::Seconds };
            metrics::describe_histogram!(name.clone(), unit, measure.help());
            let labels = measure.label().map(|(label, value)| Label::new(label, value));
            metrics::histogram!(name, [own()].into_iter().chain(labels).collect::<Vec<_>>())
        };
        let counter = |counter: &Counter| {
            let name = format!("onceward_{}_total", counter.name());
            metrics::describe_counter!(name.clone(), counter.help());
            metrics::counter!(name, vec![own()])
        };
        let gauge = |(name, help, _): &(&'static str, &'static str, ReadGauge)| {
            let name = format!("onceward_{name}");
            metrics::describe_gauge!(name.clone(), *help);
            metrics::gauge!(name, vec![own()])
        };
        let pause = |reason: &IntakePause| {
            metrics::gauge!("onceward_intake_paused", vec![own(), Label::new("reason", reason.name())])
        };
        metrics::describe_gauge!(
            "onceward_intake_paused",
            "1 while no more messages are taken for this reason."
        );
        metrics::describe_counter!(
            "onceward_deliveries_total",
            "Deliveries that ended, by origin and outcome."
        );
        metrics::describe_counter!("onceward_dead_letters_total", "Confirmed dead letters, by reason.");
        Self {
            histograms: Measure::ALL.iter().map(histogram).collect(),
            counters: Counter::ALL.iter().map(counter).collect(),
            gauges: GAUGES.iter().map(gauge).collect(),
            pauses: IntakePause::ALL.iter().map(pause).collect(),
            scope,
        }
    }
}

impl fmt::Debug for MetricsObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsObserver").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl Observer for MetricsObserver {
    fn observe(&self, measure: Measure, values: &[f64]) {
        let histogram = &self.histograms[measure as usize];
        values.iter().for_each(|value| histogram.record(*value));
    }

    fn observe_counted(&self, measure: Measure, values: &[(f64, u64)]) {
        let histogram = &self.histograms[measure as usize];
        for (value, count) in values {
            histogram.record_many(*value, usize::try_from(*count).unwrap_or(usize::MAX));
        }
    }

    fn ended(&self, origin: Option<&str>, outcome: Counter, count: u64) {
        let labels = vec![
            Label::new("scope", self.scope.clone()),
            Label::new("origin", origin.unwrap_or_default().to_owned()),
            Label::new("outcome", outcome.name()),
        ];
        metrics::counter!("onceward_deliveries_total", labels).increment(count);
    }

    fn dead_lettered(&self, letter: &LetterSighting<'_>) {
        let labels =
            vec![Label::new("scope", self.scope.clone()), Label::new("reason", letter.reason.as_str())];
        metrics::counter!("onceward_dead_letters_total", labels).increment(1);
    }

    fn report(&self, counters: &Counters) {
        for (counter, handle) in Counter::ALL.iter().zip(&self.counters) {
            handle.absolute(counters.get(*counter));
        }
        for ((.., read), handle) in GAUGES.iter().zip(&self.gauges) {
            handle.set(read(counters));
        }
        let paused = counters.paused();
        for (reason, handle) in IntakePause::ALL.iter().zip(&self.pauses) {
            handle.set(f64::from(u8::from(paused.contains(*reason))));
        }
    }
}
