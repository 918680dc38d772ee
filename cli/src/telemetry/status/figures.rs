//! The figures of a run or a relay at one moment: [`LiveStatus`].

use std::time::{Duration, SystemTime};

use onceward::outbox::RelayCounts;
use onceward::telemetry::{
    Counter, Counters, DistributionCounts, HandlerOutage, HandlerState, IntakePause, Measure, SourceState,
};
use serde::{Deserialize, Serialize};

use super::history::{EachSecond, RateHistory, Rates};
use crate::output::millis;
use crate::telemetry::readiness::Readiness;
use crate::telemetry::recent::{self, RecentLetter, RecentLine};
use crate::telemetry::watched::{Watched, Work};

/// What `/status.json` answers, without the texts of handlers, brokers and stores: any of them may hold a part of a message.
/// Times are in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LiveStatus {
    pub(crate) version: String,
    pub(crate) scope: String,
    /// `run` or `relay`.
    pub(crate) work: String,
    /// Since 1970.
    pub(crate) at_ms: u64,
    pub(crate) uptime_ms: u64,
    pub(crate) is_ready: bool,
    /// As `/health/ready` says, without the error.
    pub(crate) state: String,
    /// `None` before the pipeline has started, and for a relay.
    pub(crate) pipeline: Option<PipelineFigures>,
    /// Figures of the outbox by name; `None` for a run.
    pub(crate) relay: Option<Vec<(String, u64)>>,
    /// Newest first.
    pub(crate) errors: Vec<RecentLine>,
    /// Newest first.
    pub(crate) letters: Vec<RecentLetter>,
    /// Letters can be redriven and purged, with the token.
    #[serde(default)]
    pub(crate) has_actions: bool,
}

/// The figures of a pipeline.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PipelineFigures {
    pub(crate) rates: Rates,
    pub(crate) history: EachSecond,
    /// Why no messages are taken, in words; empty if they are.
    pub(crate) pauses: Vec<String>,
    pub(crate) source: SourceFigures,
    pub(crate) store_up: bool,
    /// Why the handler counts as down.
    pub(crate) handler_down: Option<String>,
    pub(crate) breaker_open: bool,
    pub(crate) running: u64,
    pub(crate) concurrency: Option<u64>,
    pub(crate) in_flight: u64,
    pub(crate) in_flight_limit: Option<u64>,
    pub(crate) waiting: u64,
    pub(crate) waiting_limit: Option<u64>,
    pub(crate) blocked_lanes: u64,
    pub(crate) oldest_unsettled_ms: Option<u64>,
    pub(crate) duplicate_age: AgeBounds,
    /// Received deliveries and their ends, then the other counters that are not 0; by the names of their metrics.
    pub(crate) counts: Vec<(String, u64)>,
    /// Keys by the entry of `[key] from` that they came from.
    pub(crate) key_from: Vec<(String, u64)>,
}

/// The state of a source.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SourceFigures {
    pub(crate) adapter: String,
    /// `starting`, `up` or `down`; `unknown` if the adapter does not report it.
    pub(crate) state: String,
    /// For how long it has been up or down.
    pub(crate) since_ms: Option<u64>,
    pub(crate) lag: Option<u64>,
    pub(crate) assigned: Option<u64>,
    pub(crate) last_receive_ms: Option<u64>,
    pub(crate) reconnects: u64,
    pub(crate) lost: u64,
}

/// Ages of duplicates, as upper bounds: those of the buckets of the metric. `None`: more than the largest bound, or no duplicate.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AgeBounds {
    pub(crate) count: u64,
    pub(crate) p50_ms: Option<u64>,
    pub(crate) p99_ms: Option<u64>,
    pub(crate) ttl_ms: Option<u64>,
}

impl LiveStatus {
    pub(super) fn of(watched: &Watched, history: &RateHistory, has_actions: bool) -> Self {
        let readiness = Readiness::current(watched);
        let (work, pipeline, relay) = match &watched.work {
            Work::Run(work) => ("run", work.get().map(|counters| pipeline(watched, counters, history)), None),
            Work::Relay(work) => ("relay", None, work.get().map(|counts| relay(counts))),
        };
        Self {
            version: onceward::VERSION.to_owned(),
            scope: watched.scope.clone(),
            work: work.to_owned(),
            at_ms: recent::now_ms(),
            uptime_ms: millis(watched.since.elapsed()),
            is_ready: readiness.is_ready(),
            state: readiness.without_texts(),
            pipeline,
            relay,
            errors: recent::lines(),
            letters: watched.instruments.recent_letters.read(),
            has_actions,
        }
    }
}

fn pipeline(watched: &Watched, counters: &Counters, history: &RateHistory) -> PipelineFigures {
    let limits = counters.limits();
    let paused = counters.paused();
    PipelineFigures {
        rates: history.rates(),
        history: history.each_second(),
        pauses: IntakePause::ALL
            .into_iter()
            .filter(|reason| paused.contains(*reason))
            .map(|reason| pause(reason).to_owned())
            .collect(),
        source: source(watched, counters),
        store_up: counters.is_store_up(),
        handler_down: match counters.handler_state() {
            HandlerState::Up => None,
            HandlerState::Down(outage) => Some(handler(&outage)),
        },
        breaker_open: counters.is_breaker_open(),
        running: counters.running(),
        concurrency: limits.map(|limits| limits.concurrency as u64),
        in_flight: counters.in_flight(),
        in_flight_limit: limits.map(|limits| limits.in_flight as u64),
        waiting: counters.waiting(),
        waiting_limit: limits.map(|limits| limits.waiting as u64),
        blocked_lanes: counters.blocked_lanes(),
        oldest_unsettled_ms: counters.oldest_unsettled().map(millis),
        duplicate_age: ages(
            &watched.instruments.counted(Measure::DuplicateAge),
            limits.map(|limits| limits.ttl),
        ),
        counts: counts(counters),
        key_from: counters.key_sources(),
    }
}

fn counts(counters: &Counters) -> Vec<(String, u64)> {
    let main: Vec<_> = [Counter::Received].iter().chain(Counters::ENDS).copied().collect();
    let others =
        Counter::ALL.iter().copied().filter(|counter| !main.contains(counter) && counters.get(*counter) > 0);
    let all = main.iter().copied().chain(others);
    all.map(|counter| (counter.name().to_owned(), counters.get(counter))).collect()
}

fn source(watched: &Watched, counters: &Counters) -> SourceFigures {
    let health = counters.source();
    let state = match health.map(|health| health.state()) {
        None => "unknown",
        Some(SourceState::Starting) => "starting",
        Some(SourceState::Up) => "up",
        Some(SourceState::Down(_)) => "down",
    };
    let ago = |at: SystemTime| millis(at.elapsed().unwrap_or_default());
    SourceFigures {
        adapter: watched.adapter.to_owned(),
        state: state.to_owned(),
        since_ms: health.and_then(|health| health.since()).map(ago),
        lag: health.and_then(|health| health.lag()),
        assigned: health.and_then(|health| health.assigned()),
        last_receive_ms: health.and_then(|health| health.last_receive()).map(ago),
        reconnects: health.map_or(0, |health| health.reconnects()),
        lost: health.map_or(0, |health| health.lost()),
    }
}

fn pause(reason: IntakePause) -> &'static str {
    match reason {
        IntakePause::Store => "intake paused: the store does not respond",
        IntakePause::Handler => "intake paused: the handler is unavailable",
        IntakePause::InFlight => "intake paused: as many messages are in flight as max_in_flight allows",
        IntakePause::Bytes => "intake paused: as many bytes are in flight as max_in_flight_bytes allows",
        IntakePause::Waiting => "intake paused: too many messages of a partition, or of all, wait",
        _ => "intake paused",
    }
}

fn ages(counted: &DistributionCounts, ttl: Option<Duration>) -> AgeBounds {
    AgeBounds {
        count: counted.count,
        p50_ms: bound(counted, 50),
        p99_ms: bound(counted, 99),
        ttl_ms: ttl.map(millis),
    }
}

/// The bound of the bucket with the value that `percent` of all values do not exceed.
fn bound(counted: &DistributionCounts, percent: u64) -> Option<u64> {
    let wanted = (counted.count * percent).div_ceil(100);
    let mut passed = 0;
    let bucket = counted.buckets.iter().find(|(_, count)| {
        passed += count;
        passed >= wanted && passed > 0
    });
    let seconds = bucket.map(|(bound, _)| *bound).filter(|bound| *bound < f64::MAX)?;
    Some(millis(Duration::from_secs_f64(seconds)))
}

fn relay(counts: &RelayCounts) -> Vec<(String, u64)> {
    let seen = counts.seen();
    let named = [
        ("waiting", seen.waiting),
        ("failing", seen.failing),
        ("held", seen.held),
        ("kept", seen.kept),
        ("oldest_seconds", seen.oldest.unwrap_or_default().as_secs()),
        ("published", counts.published()),
        ("publish_failures", counts.failed()),
        ("cleaned", counts.cleaned()),
    ];
    named.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

fn handler(outage: &HandlerOutage) -> String {
    match outage.failed_messages {
        Some(count) => format!("{count} different messages failed in a row"),
        None => "unavailable".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use onceward::telemetry::Distribution;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::telemetry::MessageSource;

    const FILE: MessageSource = MessageSource { adapter: "file", system: "file" };

    #[test]
    fn a_percentile_is_the_bound_of_its_bucket() {
        let ages = Distribution::new(Measure::DuplicateAge);
        assert_eq!(bound(&ages.read(), 50), None);
        ages.add(&[0.5, 2.0, 3.0, 50.0]);
        let counted = ages.read();
        assert_eq!((bound(&counted, 50), bound(&counted, 99)), (Some(10_000), Some(60_000)));
        ages.add(&[1e9]);
        assert_eq!(bound(&ages.read(), 99), None, "more than the largest bound");
    }

    #[test]
    fn the_figures_read_back_as_they_are_written() {
        let watched = Watched::run("billing", FILE, CancellationToken::new());
        let history = RateHistory::default();
        let before = LiveStatus::of(&watched, &history, false);
        assert!(
            before.pipeline.is_none() && !before.is_ready && before.state.contains("waiting for the store")
        );
        watched.started(std::sync::Arc::default());
        let written = serde_json::to_string(&LiveStatus::of(&watched, &history, false)).unwrap();
        let read: LiveStatus = serde_json::from_str(&written).unwrap();
        let figures = read.pipeline.unwrap();
        assert_eq!(
            figures.counts.len(),
            1 + Counters::ENDS.len(),
            "other counters are left out while they are 0"
        );
        assert_eq!((&*figures.source.adapter, figures.source.lag), ("file", None));
        let relay = LiveStatus::of(&Watched::relay("billing", CancellationToken::new()), &history, false);
        assert_eq!((&*relay.work, relay.relay), ("relay", None));
    }
}
