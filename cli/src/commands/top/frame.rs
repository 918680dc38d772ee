//! The figures of a process as lines for a terminal: [`frame`].

use std::time::Duration;

use crate::commands::keys::time;
use crate::handlers::text::printable;
use crate::telemetry::{LiveStatus, PipelineFigures};

/// The most lines of recent warnings, and of recent letters.
const FEW: usize = 5;

/// The longest line, in bytes.
const LONGEST: usize = 1_000;

/// The figures as lines, without control characters.
pub(super) fn frame(status: &LiveStatus) -> Vec<String> {
    let mut lines = vec![
        format!(
            "onceward {} {}  version {}  up {}",
            status.work,
            status.scope,
            status.version,
            millis(status.uptime_ms)
        ),
        status.state.clone(),
        String::new(),
    ];
    if let Some(figures) = &status.pipeline {
        pipeline(figures, &mut lines);
    }
    if let Some(relay) = &status.relay {
        lines.push(named(relay));
        lines.push(String::new());
    }
    list("recent warnings and errors", &mut lines, status.errors.iter(), |line| {
        format!("{}  {}  {}", ago(status, line.at_ms), line.level, line.text)
    });
    list("dead letters of this run", &mut lines, status.letters.iter(), |letter| {
        let key = letter.key.as_deref().unwrap_or("no key");
        let origin = letter.origin.as_deref().unwrap_or_default();
        format!("{}  {}  {key}  {origin}", ago(status, letter.at_ms), letter.reason)
    });
    lines.iter().map(|line| printable(line.as_bytes(), LONGEST)).collect()
}

fn pipeline(figures: &PipelineFigures, lines: &mut Vec<String>) {
    lines.extend(figures.pauses.iter().cloned());
    let rates = &figures.rates;
    let source = &figures.source;
    let lag = source.lag.map_or_else(|| "unknown".to_owned(), |lag| lag.to_string());
    let since = source.since_ms.map(|ms| format!(" for {}", millis(ms))).unwrap_or_default();
    let store = if figures.store_up { "up" } else { "does not respond" };
    let handler = figures.handler_down.as_ref().map_or_else(|| "up".to_owned(), |why| format!("down: {why}"));
    let breaker = if figures.breaker_open { ", circuit breaker open" } else { "" };
    let oldest = figures.oldest_unsettled_ms.map_or_else(|| "none".to_owned(), millis);
    let age = &figures.duplicate_age;
    let ages = match age.count {
        0 => "no duplicate yet".to_owned(),
        _ => format!("p50 {}, p99 {}", at_most(age.p50_ms), at_most(age.p99_ms)),
    };
    let ttl = age.ttl_ms.map(|ttl| format!(", ttl {}", millis(ttl))).unwrap_or_default();
    lines.extend([
        format!(
            "per second      {:.1} received  {:.1} handled  {:.1} duplicates  {:.1} failed runs",
            rates.received, rates.handled, rates.duplicates, rates.failed
        ),
        format!("source          {} {}{since}  lag {lag}", source.adapter, source.state),
        format!("store           {store}"),
        format!("handler         {handler}{breaker}"),
        format!(
            "running         {}  in flight {}  waiting {}  blocked lanes {}",
            figures.running,
            of(figures.in_flight, figures.in_flight_limit),
            of(figures.waiting, figures.waiting_limit),
            figures.blocked_lanes
        ),
        format!("oldest          {oldest}"),
        format!("duplicate age   {ages}{ttl}"),
        format!("since the start {}", named(&figures.counts)),
        format!("keys from       {}", named(&figures.key_from)),
        String::new(),
    ]);
}

fn list<'a, T: 'a>(
    title: &str,
    lines: &mut Vec<String>,
    items: impl Iterator<Item = &'a T>,
    line: impl Fn(&T) -> String,
) {
    let shown: Vec<_> = items.take(FEW).map(line).collect();
    if !shown.is_empty() {
        lines.push(title.to_owned());
        lines.extend(shown.into_iter().map(|line| format!("  {line}")));
    }
}

fn named(counts: &[(String, u64)]) -> String {
    let all: Vec<_> = counts.iter().map(|(name, count)| format!("{name}={count}")).collect();
    all.join(" ")
}

fn of(count: u64, limit: Option<u64>) -> String {
    limit.map_or_else(|| count.to_string(), |limit| format!("{count}/{limit}"))
}

fn at_most(ms: Option<u64>) -> String {
    ms.map_or_else(|| "> 30d".to_owned(), |ms| format!("≤ {}", millis(ms)))
}

fn ago(status: &LiveStatus, at_ms: u64) -> String {
    format!("{} ago", millis(status.at_ms.saturating_sub(at_ms)))
}

fn millis(ms: u64) -> String {
    time(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_shown_and_no_text_acts_on_the_terminal() {
        let status = serde_json::json!({
            "version": "1.2.3", "scope": "billing", "work": "run", "at_ms": 100_000, "uptime_ms": 3_600_000, "is_ready": false,
            "state": "starting: \u{1b}[2Jwaiting",
            "pipeline": {
                "rates": {"received": 12.34, "handled": 11.0, "duplicates": 1.0, "failed": 0.5},
                "history": {"handled": [1], "duplicates": [0]},
                "pauses": ["intake paused: the store does not respond"],
                "source": {"adapter": "broker", "state": "down", "since_ms": 61_000, "lag": 77, "assigned": 3,
                           "last_receive_ms": 5, "reconnects": 0, "lost": 0},
                "store_up": false, "handler_down": "unavailable", "breaker_open": true, "running": 2, "concurrency": 16,
                "in_flight": 9, "in_flight_limit": 64, "waiting": 4, "waiting_limit": null, "blocked_lanes": 1,
                "oldest_unsettled_ms": 61_000,
                "duplicate_age": {"count": 3, "p50_ms": 10_000, "p99_ms": null, "ttl_ms": 691_200_000},
                "counts": [["received", 5], ["handled", 4]], "key_from": [["json:/id", 5]],
            },
            "relay": null,
            "errors": [{"at_ms": 99_000, "level": "WARN", "text": "settlement failed"}],
            "letters": [{"at_ms": 40_000, "key": "00ff", "reason": "permanent", "origin": "orders"}],
        });
        let text = frame(&serde_json::from_value(status).unwrap()).join("\n");
        for said in [
            "onceward run billing  version 1.2.3  up 1h",
            "starting: \\u{1b}[2Jwaiting",
            "intake paused: the store does not respond",
            "12.3 received  11.0 handled  1.0 duplicates  0.5 failed runs",
            "broker down for 1m 1s  lag 77",
            "down: unavailable, circuit breaker open",
            "running         2  in flight 9/64  waiting 4  blocked lanes 1",
            "oldest          1m 1s",
            "p50 ≤ 10s, p99 > 30d, ttl 8d",
            "received=5 handled=4",
            "json:/id=5",
            "1s ago  WARN  settlement failed",
            "1m ago  permanent  00ff  orders",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
