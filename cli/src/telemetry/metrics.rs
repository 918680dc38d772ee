//! Metrics of a run or a relay: [`read`].

use std::borrow::Cow;

use onceward::outbox::RelayCounts;
use onceward::telemetry::{Counter, Counters, HandlerState, IntakePause, Limits, SourceHealth, SourceState};

use super::family::{MetricFamilies, MetricFamily, MetricKind, MetricValue};
use super::process;
use super::watched::{SeenLetters, Watched, Work};

/// The current metrics of `watched`, whose names begin with `onceward_` and which have the label `scope`; and those of the
/// process, whose names begin with `process_`.
pub(super) fn read(watched: &Watched) -> Vec<MetricFamily> {
    let mut own = MetricFamilies::new("onceward", vec![("scope", Cow::Owned(watched.scope.clone()))]);
    let version = vec![("version", Cow::Borrowed(onceward::VERSION))];
    own.add("build", "The version that runs.", MetricKind::Info, [(version, MetricValue::Whole(1))]);
    match &watched.work {
        Work::Run(work) => {
            watched.instruments.read(&mut own);
            read_run(&mut own, work.get().map(AsRef::as_ref));
            if let Some(letters) = *watched.letters.lock() {
                read_letters(&mut own, &letters);
            }
        }
        Work::Relay(work) => read_relay(&mut own, work.get().map(AsRef::as_ref)),
    }
    #[cfg(feature = "otlp")]
    read_losses(&mut own);
    let mut families = own.into_families();
    families.extend(process::read());
    families
}

fn read_run(families: &mut MetricFamilies, counters: Option<&Counters>) {
    let value = |read: fn(&Counters) -> u64| counters.map_or(0, read);
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
        (
            "running",
            "Deliveries that are being claimed, wait for a slot, or are handled.",
            value(Counters::running),
        ),
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
        families.gauge(name, help, value);
    }
    let Some(counters) = counters else { return };
    read_pauses(families, counters);
    if let Some(limits) = counters.limits() {
        read_limits(families, &limits);
    }
    if let Some(source) = counters.source() {
        read_source(families, source);
    }
    read_keys(families, &counters.key_sources());
    for counter in Counter::ALL {
        families.counter(counter.name(), counter.help(), counters.get(*counter));
    }
}

fn read_pauses(families: &mut MetricFamilies, counters: &Counters) {
    let help = "1 while no more messages are taken from the source for this reason. The limits of what is in flight are reached whenever messages arrive faster than they are handled.";
    let paused = counters.paused();
    let samples = IntakePause::ALL.into_iter().map(|reason| {
        let value = MetricValue::Whole(paused.contains(reason).into());
        (vec![("reason", Cow::Borrowed(reason.name()))], value)
    });
    families.add("intake_paused", help, MetricKind::Gauge, samples);
}

fn read_limits(families: &mut MetricFamilies, limits: &Limits) {
    let Limits { concurrency, in_flight, in_flight_bytes, waiting, ttl, .. } = *limits;
    for (name, help, value) in [
        ("concurrency", "Handlers that may run at once.", concurrency as u64),
        ("in_flight_limit", "Deliveries in flight that may be ready to run at once.", in_flight as u64),
        ("in_flight_limit_bytes", "Bytes of deliveries that may be in flight.", in_flight_bytes as u64),
        ("waiting_limit", "Deliveries that may wait at once.", waiting as u64),
        ("ttl_seconds", "Seconds for which a completed key is remembered.", ttl.as_secs()),
    ] {
        families.gauge(name, help, value);
    }
}

/// The part of the messages that keys were taken from, which reveals an unintended one such as `position`.
fn read_keys(families: &mut MetricFamilies, sources: &[(String, u64)]) {
    let samples = sources
        .iter()
        .map(|(name, count)| (vec![("from", Cow::Owned(name.clone()))], MetricValue::Whole(*count)));
    families.add("keys", "Keys taken from each entry of key.from.", MetricKind::Counter, samples);
}

/// Only what is known: a queue whose age is unknown has no such line.
fn read_letters(families: &mut MetricFamilies, letters: &SeenLetters) {
    families.gauge(
        "dead_letter_depth",
        "Dead letters in their destination at the last observation, also those of other scopes.",
        letters.depth,
    );
    if let Some(died) = letters.oldest_died {
        let help =
            "Age in seconds of the oldest dead letter that was in the destination at the last observation.";
        families.gauge("dead_letter_oldest_seconds", help, died.elapsed().unwrap_or_default().as_secs());
    }
}

/// Only known values: a source without a lag, for example, has no such line.
fn read_source(families: &mut MetricFamilies, source: &SourceHealth) {
    let up = u64::from(source.state() == SourceState::Up);
    let help = "1 while the source can deliver; 0 before the first connection and while it is down.";
    families.gauge("source_up", help, up);
    if let Some(received) = source.last_receive() {
        let help = "Seconds since messages last arrived.";
        let ago = received.elapsed().unwrap_or_default().as_secs();
        families.gauge("source_last_receive_seconds", help, ago);
    }
    if let Some(lag) = source.lag() {
        let help = "Messages waiting in the broker at the last observation: consumer lag or queue depth.";
        families.gauge("source_lag", help, lag);
    }
    if let Some(assigned) = source.assigned() {
        let help = "Partitions that are assigned to this process.";
        families.gauge("source_assigned_partitions", help, assigned);
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
        families.counter(name, help, value);
    }
}

/// What collectors did not get; nothing without one.
#[cfg(feature = "otlp")]
fn read_losses(families: &mut MetricFamilies) {
    use super::otlp::losses::{dropped_spans, failed_exports};
    let samples = failed_exports()
        .into_iter()
        .map(|(signal, count)| (vec![("signal", Cow::Borrowed(signal))], MetricValue::Whole(count)));
    let help = "Requests that the OpenTelemetry collector did not take.";
    families.add("export_failures", help, MetricKind::Counter, samples);
    if let Some(count) = dropped_spans() {
        let help = "Spans that were not exported: too many waited, or the collector did not take them.";
        families.counter("spans_dropped", help, count);
    }
}

fn read_relay(families: &mut MetricFamilies, counts: Option<&RelayCounts>) {
    let up = u64::from(counts.is_some_and(RelayCounts::is_outbox_up));
    families.gauge("store_up", "1 while the outbox responds; 0 before the first response.", up);
    let Some(counts) = counts else { return };
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
        families.gauge(name, help, value);
    }
    for (name, help, value) in [
        ("outbox_published", "Rows published by this relay and confirmed.", counts.published()),
        ("outbox_publish_failures", "Failed publishes of this relay.", counts.failed()),
        ("outbox_cleaned", "Published rows removed by this relay.", counts.cleaned()),
    ] {
        families.counter(name, help, value);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::telemetry::MessageSource;
    use crate::telemetry::exposition;

    const FILE: MessageSource = MessageSource { adapter: "file", system: "file" };

    fn text(watched: &Watched) -> String {
        exposition::text(&read(watched))
    }

    #[test]
    fn every_counter_is_there_under_its_name_once_the_pipeline_is() {
        let watched = Watched::run("billing", FILE, CancellationToken::new());
        let before = text(&watched);
        assert!(before.contains("onceward_store_up{scope=\"billing\"} 0\n"), "{before}");
        assert!(!before.contains("onceward_received"), "{before}");

        watched.started(Arc::default());
        let after = text(&watched);
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

    #[test]
    fn a_source_tells_what_it_knows_and_nothing_else() {
        let source = SourceHealth::default();
        let read = || {
            let mut families = MetricFamilies::new("onceward", Vec::new());
            read_source(&mut families, &source);
            exposition::text(&families.into_families())
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
        assert!(text(&watched).contains("onceward_store_up{scope=\"billing\"} 0\n"));
        watched.relay_started(Arc::default());
        let after = text(&watched);
        for name in ["waiting", "failing", "held", "kept", "oldest_seconds"] {
            assert!(after.contains(&format!("onceward_outbox_{name}{{scope=\"billing\"}} 0\n")), "{after}");
        }
        for name in ["published", "publish_failures", "cleaned"] {
            let line = format!("onceward_outbox_{name}_total{{scope=\"billing\"}} 0\n");
            assert!(after.contains(&line), "{line} is not in {after}");
        }
        assert!(!after.contains("onceward_received"), "{after}");
    }

    #[test]
    fn dead_letters_are_there_as_far_as_they_are_known() {
        let watched = Watched::run("billing", FILE, CancellationToken::new());
        assert!(!text(&watched).contains("dead_letter_depth"));
        watched.see_letters(Some(SeenLetters { depth: 3, oldest_died: None }));
        let counted = text(&watched);
        assert!(counted.contains("onceward_dead_letter_depth{scope=\"billing\"} 3\n"), "{counted}");
        assert!(!counted.contains("dead_letter_oldest"), "{counted}");
        let died = SystemTime::now() - Duration::from_secs(90);
        watched.see_letters(Some(SeenLetters { depth: 3, oldest_died: Some(died) }));
        let aged = text(&watched);
        assert!(aged.contains("onceward_dead_letter_oldest_seconds{scope=\"billing\"} 9"), "{aged}");
        watched.see_letters(None);
        assert!(!text(&watched).contains("dead_letter_depth"), "what is no longer known is not shown");
    }
}
