//! The counters and gauges of a run, or of a relay, as metrics: [`text`].

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use onceward::outbox::RelayCounts;
use onceward::telemetry::{Counter, Counters, HandlerState, SourceHealth, SourceState};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text as encoding};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::{Watched, Work};

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
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        match &self.0.work {
            Work::Run(work) => of_run(encoder, work.get().map(AsRef::as_ref)),
            Work::Relay(work) => of_relay(encoder, work.get().map(AsRef::as_ref)),
        }
    }
}

fn of_run(mut encoder: DescriptorEncoder<'_>, counters: Option<&Counters>) -> fmt::Result {
    let value = |of: fn(&Counters) -> u64| gauge(counters.map_or(0, of));
    for (name, help, value) in [
        ("in_flight", "Deliveries taken and not yet settled.", value(Counters::in_flight)),
        (
            "in_flight_bytes",
            "Bytes of deliveries taken and not yet settled.",
            value(Counters::in_flight_bytes),
        ),
        (
            "waiting",
            "Of the deliveries in flight, those that cannot run: they wait for a retry, for another message, or for the store.",
            value(Counters::waiting),
        ),
        (
            "blocked_lanes",
            "Order keys or partitions whose first message waits, with others behind it.",
            value(Counters::blocked_lanes),
        ),
        (
            "handler_up",
            "1 while the handler works, as far as its runs show; 0 while intake pauses for it.",
            value(|counters| u64::from(counters.handler_state() == HandlerState::Up)),
        ),
        (
            "store_up",
            "1 while the store answers; 0 before the first answer and while intake pauses for it.",
            value(|counters| u64::from(counters.is_store_up())),
        ),
        (
            "expiry_lag_seconds",
            "How long ago the oldest record expired that the store has not removed yet.",
            value(|counters| counters.expiry_lag().as_secs()),
        ),
    ] {
        one(&mut encoder, name, help, &value)?;
    }
    let Some(counters) = counters else { return Ok(()) };
    if let Some(source) = counters.source() {
        of_source(&mut encoder, source)?;
    }
    Counter::ALL.iter().try_for_each(|counter| {
        one(&mut encoder, counter.name(), counter.help(), &ConstCounter::new(counters.get(*counter)))
    })
}

/// Only what is known: a source without a lag, say, has no such line.
fn of_source(encoder: &mut DescriptorEncoder<'_>, source: &SourceHealth) -> fmt::Result {
    let up = u64::from(source.state() == SourceState::Up);
    let help = "1 while the source can deliver; 0 before it was reached and while it is down.";
    one(encoder, "source_up", help, &gauge(up))?;
    if let Some(received) = source.last_receive() {
        let help = "How long ago messages last arrived.";
        let ago = received.elapsed().unwrap_or_default().as_secs();
        one(encoder, "source_last_receive_seconds", help, &gauge(ago))?;
    }
    if let Some(lag) = source.lag() {
        let help =
            "Messages that wait in the broker, when that was last looked at: consumer lag or queue depth.";
        one(encoder, "source_lag", help, &gauge(lag))?;
    }
    for (name, help, value) in [
        ("source_reconnects", "How often the source came back after it was down.", source.reconnects()),
        (
            "source_lost_to_retention",
            "Messages that the broker's retention removed before they were read, as far as that could be seen.",
            source.lost(),
        ),
        (
            "source_resets",
            "How often partitions started again: a topic was recreated or its log truncated.",
            source.resets(),
        ),
    ] {
        one(encoder, name, help, &ConstCounter::new(value))?;
    }
    Ok(())
}

fn of_relay(mut encoder: DescriptorEncoder<'_>, counts: Option<&RelayCounts>) -> fmt::Result {
    let up = u64::from(counts.is_some_and(RelayCounts::is_outbox_up));
    one(&mut encoder, "store_up", "1 while the outbox answers; 0 before the first answer.", &gauge(up))?;
    let Some(counts) = counts else { return Ok(()) };
    let seen = counts.seen();
    for (name, help, value) in [
        ("outbox_waiting", "Rows that are not published.", seen.waiting),
        ("outbox_failing", "Rows that are not published and whose last attempt failed.", seen.failing),
        ("outbox_held", "Rows that wait behind a failing one of their order key.", seen.held),
        ("outbox_kept", "Rows that were published and are still kept.", seen.kept),
        (
            "outbox_oldest_seconds",
            "How long the oldest row that is not published has waited.",
            seen.oldest.unwrap_or_default().as_secs(),
        ),
    ] {
        one(&mut encoder, name, help, &gauge(value))?;
    }
    for (name, help, value) in [
        ("outbox_published", "Rows that this relay published, confirmed.", counts.published()),
        ("outbox_publish_failures", "Publishes of this relay that failed.", counts.failed()),
        ("outbox_cleaned", "Published rows that this relay removed.", counts.cleaned()),
    ] {
        one(&mut encoder, name, help, &ConstCounter::new(value))?;
    }
    Ok(())
}

fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
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
        let watched = Watched::run("billing", CancellationToken::new());
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

    /// A source alone.
    #[derive(Debug)]
    struct Alone(Arc<SourceHealth>);

    impl Collector for Alone {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            of_source(&mut encoder, &self.0)
        }
    }

    #[test]
    fn a_source_tells_what_it_knows_and_nothing_else() {
        let source = Arc::new(SourceHealth::default());
        let mut registry = Registry::with_prefix("onceward");
        registry.register_collector(Box::new(Alone(Arc::clone(&source))));
        let before = text(&registry).unwrap();
        assert!(before.contains("onceward_source_up 0\n"), "{before}");
        assert!(!before.contains("lag") && !before.contains("last_receive"), "{before}");
        source.set_up();
        source.set_down("the broker refuses connections");
        source.set_up();
        source.received();
        source.set_lag(Some(7));
        source.lost_to_retention(3);
        source.reset();
        let after = text(&registry).unwrap();
        for line in [
            "source_up 1",
            "source_lag 7",
            "source_last_receive_seconds 0",
            "source_reconnects_total 1",
            "source_lost_to_retention_total 3",
            "source_resets_total 1",
        ] {
            assert!(after.contains(&format!("onceward_{line}\n")), "{line} is not in {after}");
        }
    }

    #[test]
    fn a_relay_tells_of_its_outbox_and_nothing_of_deliveries() {
        let watched = Watched::relay("billing", CancellationToken::new());
        let registry = registry(Arc::clone(&watched));
        assert!(text(&registry).unwrap().contains("onceward_store_up{scope=\"billing\"} 0\n"));
        watched.relays(Arc::default());
        let after = text(&registry).unwrap();
        for name in ["waiting", "failing", "held", "kept", "oldest_seconds"] {
            assert!(after.contains(&format!("onceward_outbox_{name}{{scope=\"billing\"}} 0\n")), "{after}");
        }
        for name in ["published", "publish_failures", "cleaned"] {
            let line = format!("onceward_outbox_{name}_total{{scope=\"billing\"}} 0\n");
            assert!(after.contains(&line), "{line} is not in {after}");
        }
        assert!(!after.contains("onceward_received"), "{after}");
    }
}
