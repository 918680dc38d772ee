//! The counters and gauges of a run as metrics: [`text`].

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use onceward::telemetry::{Counter, Counters};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text as encoding};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::Watched;

/// What [`text`] is.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry with everything that `watched` tells: every name begins with `onceward_` and bears the scope.
pub(super) fn registry(watched: Arc<Watched>) -> Registry {
    let labels = [(Cow::Borrowed("scope"), Cow::Owned(watched.scope.clone()))];
    let mut registry = Registry::with_prefix_and_labels("onceward", labels.into_iter());
    registry.register("build", "The version that runs", Info::new([("version", onceward::VERSION)]));
    registry.register_collector(Box::new(Collected(watched)));
    registry
}

/// All metrics as they are now, in OpenMetrics' text format, which Prometheus reads.
pub(super) fn text(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encoding::encode(&mut text, registry)?;
    Ok(text)
}

/// Reads the counters at each scrape; nothing is counted twice.
#[derive(Debug)]
struct Collected(Arc<Watched>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counters = self.0.counters.get();
        let gauge = |of: fn(&Counters) -> u64| {
            ConstGauge::new(counters.map_or(0, |counters| i64::try_from(of(counters)).unwrap_or(i64::MAX)))
        };
        for (name, help, value) in [
            ("in_flight", "Deliveries taken and not yet settled.", gauge(Counters::in_flight)),
            (
                "in_flight_bytes",
                "Bytes of deliveries taken and not yet settled.",
                gauge(Counters::in_flight_bytes),
            ),
            (
                "store_up",
                "1 while the store answers; 0 before the first answer and while intake pauses.",
                gauge(|counters| u64::from(counters.is_store_up())),
            ),
            (
                "expiry_lag_seconds",
                "How long ago the oldest record expired that the store has not removed yet.",
                gauge(|counters| counters.expiry_lag().as_secs()),
            ),
        ] {
            one(&mut encoder, name, help, &value)?;
        }
        let Some(counters) = counters else { return Ok(()) };
        Counter::ALL.iter().try_for_each(|counter| {
            one(&mut encoder, counter.name(), counter.help(), &ConstCounter::new(counters.get(*counter)))
        })
    }
}

fn one(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &(impl EncodeMetric + ?Sized),
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn every_counter_is_there_under_its_name_once_the_pipeline_is() {
        let watched = Watched::new("billing", CancellationToken::new());
        let registry = registry(Arc::clone(&watched));
        let before = text(&registry).unwrap();
        assert!(before.contains("onceward_store_up{scope=\"billing\"} 0\n"), "{before}");
        assert!(!before.contains("onceward_received"), "{before}");

        watched.started(Arc::default());
        let after = text(&registry).unwrap();
        for counter in Counter::ALL {
            let line = format!("onceward_{}_total{{scope=\"billing\"}} 0\n", counter.name());
            assert!(after.contains(&line), "{line} is not in {after}");
            assert!(
                after.contains(&format!("# HELP onceward_{} {}\n", counter.name(), counter.help())),
                "{after}"
            );
        }
        assert!(after.contains(&format!("version=\"{}\"", onceward::VERSION)), "{after}");
        assert!(after.ends_with("# EOF\n"), "{after}");
    }
}
