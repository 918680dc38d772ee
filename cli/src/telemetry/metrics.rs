//! Metrics of a run or a relay, in the text format of OpenMetrics: [`text`].

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use onceward::outbox::RelayCounts;
use onceward::telemetry::{Counter, Counters, HandlerState, IntakePause, Limits, SourceHealth, SourceState};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text as encoding};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::process::ProcessMetrics;
use super::watched::{Watched, Work};

/// The content type of [`text`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of `watched`, whose names begin with `onceward_` and which have the label `scope`; and those of the process,
/// whose names begin with `process_`.
#[derive(Debug)]
pub(super) struct Registries {
    own: Registry,
    process: Registry,
}

impl Registries {
    pub(super) fn new(watched: Arc<Watched>) -> Self {
        let labels = [(Cow::Borrowed("scope"), Cow::Owned(watched.scope.clone()))];
        let mut own = Registry::with_prefix_and_labels("onceward", labels.into_iter());
        own.register("build", "The version that runs", Info::new([("version", onceward::VERSION)]));
        if matches!(watched.work, Work::Run(_)) {
            watched.instruments.register(&mut own);
        }
        own.register_collector(Box::new(Collected(watched)));
        let mut process = Registry::with_prefix("process");
        process.register_collector(Box::new(ProcessMetrics));
        Self { own, process }
    }
}

/// The current metrics in the text format of OpenMetrics, which Prometheus reads.
pub(super) fn text(registries: &Registries) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encoding::encode_registry(&mut text, &registries.own)?;
    encoding::encode_registry(&mut text, &registries.process)?;
    encoding::encode_eof(&mut text)?;
    Ok(text)
}

/// Reads the counters at each scrape.
#[derive(Debug)]
struct Collected(Arc<Watched>);

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        match &self.0.work {
            Work::Run(work) => encode_run(encoder, work.get().map(AsRef::as_ref)),
            Work::Relay(work) => encode_relay(encoder, work.get().map(AsRef::as_ref)),
        }
    }
}

fn encode_run(mut encoder: DescriptorEncoder<'_>, counters: Option<&Counters>) -> fmt::Result {
    let value = |read: fn(&Counters) -> u64| gauge(counters.map_or(0, read));
    for (name, help, value) in [
        ("in_flight", "Deliveries received and not yet settled.", value(Counters::in_flight)),
        (
            "in_flight_bytes",
            "Bytes of deliveries received and not yet settled.",
            value(Counters::in_flight_bytes),
        ),
        (
            "waiting",
            "Deliveries in flight that cannot run yet: they wait for a retry, for another message, or for the store.",
            value(Counters::waiting),
        ),
        (
            "blocked_lanes",
            "Order keys or partitions whose first message waits and blocks others.",
            value(Counters::blocked_lanes),
        ),
        (
            "handler_up",
            "1 while the handler is available, judging by its runs; 0 while intake is paused because of it.",
            value(|counters| u64::from(counters.handler_state() == HandlerState::Up)),
        ),
        (
            "store_up",
            "1 while the store responds; 0 before the first response and while intake is paused because of it.",
            value(|counters| u64::from(counters.is_store_up())),
        ),
        ("running", "Deliveries that are being claimed or handled.", value(Counters::running)),
        (
            "oldest_unsettled_seconds",
            "Age in seconds of the oldest delivery in flight; 0 without one.",
            value(|counters| counters.oldest_unsettled().unwrap_or_default().as_secs()),
        ),
        (
            "breaker_open",
            "1 while the circuit breaker of the handler is open: intake pauses, and single messages probe the handler.",
            value(|counters| u64::from(counters.is_breaker_open())),
        ),
        (
            "expiry_lag_seconds",
            "Seconds since the expiry of the oldest record that the store has not removed yet.",
            value(|counters| counters.expiry_lag().as_secs()),
        ),
    ] {
        encode(&mut encoder, name, help, &value)?;
    }
    let Some(counters) = counters else { return Ok(()) };
    encode_pauses(&mut encoder, counters)?;
    if let Some(limits) = counters.limits() {
        encode_limits(&mut encoder, &limits)?;
    }
    if let Some(source) = counters.source() {
        encode_source(&mut encoder, source)?;
    }
    encode_keys(&mut encoder, &counters.key_sources())?;
    Counter::ALL.iter().try_for_each(|counter| {
        encode(&mut encoder, counter.name(), counter.help(), &ConstCounter::new(counters.get(*counter)))
    })
}

fn encode_pauses(encoder: &mut DescriptorEncoder<'_>, counters: &Counters) -> fmt::Result {
    let help = "1 while no more messages are taken from the source for this reason. The limits of what is in flight are reached whenever messages arrive faster than they are handled.";
    let mut family = encoder.encode_descriptor("intake_paused", help, None, MetricType::Gauge)?;
    let paused = counters.paused();
    IntakePause::ALL.iter().try_for_each(|reason| {
        let value = u64::from(paused.contains(*reason));
        gauge(value).encode(family.encode_family(&[("reason", reason.name())])?)
    })
}

fn encode_limits(encoder: &mut DescriptorEncoder<'_>, limits: &Limits) -> fmt::Result {
    let Limits { concurrency, in_flight, in_flight_bytes, waiting, ttl, .. } = *limits;
    for (name, help, value) in [
        ("concurrency", "Handlers that may run at once.", concurrency as u64),
        ("in_flight_limit", "Deliveries in flight that may be ready to run at once.", in_flight as u64),
        ("in_flight_limit_bytes", "Bytes of deliveries that may be in flight.", in_flight_bytes as u64),
        ("waiting_limit", "Deliveries that may wait at once.", waiting as u64),
        ("ttl_seconds", "Seconds for which a completed key is remembered.", ttl.as_secs()),
    ] {
        encode(encoder, name, help, &gauge(value))?;
    }
    Ok(())
}

/// The part of the messages that keys were taken from, which reveals an unintended one such as `position`.
fn encode_keys(encoder: &mut DescriptorEncoder<'_>, sources: &[(String, u64)]) -> fmt::Result {
    if sources.is_empty() {
        return Ok(());
    }
    let help = "Keys taken from each entry of key.from.";
    let mut family = encoder.encode_descriptor("keys", help, None, MetricType::Counter)?;
    sources.iter().try_for_each(|(name, count)| {
        ConstCounter::new(*count).encode(family.encode_family(&[("from", name.as_str())])?)
    })
}

/// Only known values: a source without a lag, for example, has no such line.
fn encode_source(encoder: &mut DescriptorEncoder<'_>, source: &SourceHealth) -> fmt::Result {
    let up = u64::from(source.state() == SourceState::Up);
    let help = "1 while the source can deliver; 0 before the first connection and while it is down.";
    encode(encoder, "source_up", help, &gauge(up))?;
    if let Some(received) = source.last_receive() {
        let help = "Seconds since messages last arrived.";
        let ago = received.elapsed().unwrap_or_default().as_secs();
        encode(encoder, "source_last_receive_seconds", help, &gauge(ago))?;
    }
    if let Some(lag) = source.lag() {
        let help = "Messages waiting in the broker at the last observation: consumer lag or queue depth.";
        encode(encoder, "source_lag", help, &gauge(lag))?;
    }
    if let Some(assigned) = source.assigned() {
        let help = "Partitions that are assigned to this process.";
        encode(encoder, "source_assigned_partitions", help, &gauge(assigned))?;
    }
    for (name, help, value) in [
        ("source_reconnects", "Reconnections of the source after it was down.", source.reconnects()),
        (
            "source_lost_to_retention",
            "Messages that the retention of the broker removed before they were read, as far as observed.",
            source.lost(),
        ),
        (
            "source_resets",
            "Partitions that restarted because a topic was recreated or its log truncated.",
            source.resets(),
        ),
    ] {
        encode(encoder, name, help, &ConstCounter::new(value))?;
    }
    Ok(())
}

fn encode_relay(mut encoder: DescriptorEncoder<'_>, counts: Option<&RelayCounts>) -> fmt::Result {
    let up = u64::from(counts.is_some_and(RelayCounts::is_outbox_up));
    encode(
        &mut encoder,
        "store_up",
        "1 while the outbox responds; 0 before the first response.",
        &gauge(up),
    )?;
    let Some(counts) = counts else { return Ok(()) };
    let seen = counts.seen();
    for (name, help, value) in [
        ("outbox_waiting", "Unpublished rows.", seen.waiting),
        ("outbox_failing", "Unpublished rows whose last attempt failed.", seen.failing),
        ("outbox_held", "Rows blocked by a failing row of their order key.", seen.held),
        ("outbox_kept", "Published rows that are still kept.", seen.kept),
        (
            "outbox_oldest_seconds",
            "Age in seconds of the oldest unpublished row.",
            seen.oldest.unwrap_or_default().as_secs(),
        ),
    ] {
        encode(&mut encoder, name, help, &gauge(value))?;
    }
    for (name, help, value) in [
        ("outbox_published", "Rows published by this relay and confirmed.", counts.published()),
        ("outbox_publish_failures", "Failed publishes of this relay.", counts.failed()),
        ("outbox_cleaned", "Published rows removed by this relay.", counts.cleaned()),
    ] {
        encode(&mut encoder, name, help, &ConstCounter::new(value))?;
    }
    Ok(())
}

fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

fn encode(
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
    use crate::telemetry::MessageSource;

    const FILE: MessageSource = MessageSource { adapter: "file", system: "file" };

    #[test]
    fn every_counter_is_there_under_its_name_once_the_pipeline_is() {
        let watched = Watched::run("billing", FILE, CancellationToken::new());
        let registry = Registries::new(Arc::clone(&watched));
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
            encode_source(&mut encoder, &self.0)
        }
    }

    #[test]
    fn a_source_tells_what_it_knows_and_nothing_else() {
        let source = Arc::new(SourceHealth::default());
        let mut registry = Registry::with_prefix("onceward");
        registry.register_collector(Box::new(Alone(Arc::clone(&source))));
        let read = || {
            let mut text = String::new();
            encoding::encode(&mut text, &registry).unwrap();
            text
        };
        let before = read();
        assert!(before.contains("onceward_source_up 0\n"), "{before}");
        assert!(!before.contains("lag") && !before.contains("last_receive"), "{before}");
        source.set_up();
        source.set_down("the broker refuses connections");
        source.set_up();
        source.received();
        source.set_lag(Some(7));
        source.lost_to_retention(3);
        source.reset();
        source.set_assigned(2);
        let after = read();
        for line in [
            "source_up 1",
            "source_lag 7",
            "source_assigned_partitions 2",
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
        let registry = Registries::new(Arc::clone(&watched));
        assert!(text(&registry).unwrap().contains("onceward_store_up{scope=\"billing\"} 0\n"));
        watched.relay_started(Arc::default());
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
