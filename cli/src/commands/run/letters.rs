//! Observes the dead letters of a run, for its metrics: [`observe`].

use std::convert::Infallible;
use std::future::pending;
use std::time::{Duration, SystemTime};

use onceward::Scope;
use onceward::telemetry::{Counter, Counters, RateLimited};
use tokio::time::Instant;

use crate::commands::dlq::{LetterCount, LettersFound, letters};
use crate::config::Config;
use crate::registry::OpenStore;
use crate::telemetry::{self, SeenLetters, Watched};

/// The interval between observations.
const INTERVAL: Duration = Duration::from_secs(60);

/// The interval while this run sends letters. Each observation opens connections.
const SOON: Duration = Duration::from_secs(20);

/// How often is looked whether this run has sent any.
const GLANCE: Duration = Duration::from_secs(1);

/// The time limit of an observation, and of reading the letters within it.
const LIMIT: Duration = Duration::from_secs(20);
const READING: Duration = Duration::from_secs(10);

/// An observation takes at most one part in this many of the time.
const SHARE: u32 = 20;

/// Observes the letters until it is dropped. A failure is logged, and changes nothing but the metrics.
pub(super) async fn observe(
    config: &Config,
    scope: &Scope,
    store: &OpenStore,
    watched: &Watched,
    counters: &Counters,
) -> Infallible {
    if config.dead_letter.is_none() || !telemetry::metrics_are_on(config) {
        return pending().await;
    }
    let lines = RateLimited::per(Duration::from_secs(600));
    loop {
        let sent = || counters.get(Counter::DeadLettered);
        let (began, before) = (Instant::now(), sent());
        let found = tokio::time::timeout(LIMIT, letters(config, scope, store, READING)).await;
        watched.see_letters(match &found {
            Ok(Ok(Some(LettersFound { count: LetterCount::Total, .. }))) => {
                unknown(&lines, "they could not be read, or not in time")
            }
            Ok(Ok(found)) => found.as_ref().and_then(seen),
            Ok(Err(error)) => unknown(&lines, &error.to_string()),
            Err(_) => unknown(&lines, "the destination did not answer in time"),
        });
        let least = began.elapsed() * SHARE;
        loop {
            tokio::time::sleep(GLANCE).await;
            let interval = if sent() == before { INTERVAL } else { SOON };
            if began.elapsed() >= interval.max(least) {
                break;
            }
        }
    }
}

fn seen(found: &LettersFound) -> Option<SeenLetters> {
    let depth = found.status.letters?;
    let oldest_died = found.oldest.and_then(|age| SystemTime::now().checked_sub(age));
    Some(SeenLetters { depth, oldest_died })
}

fn unknown(lines: &RateLimited, cause: &str) -> Option<SeenLetters> {
    if let Some(suppressed) = lines.allow("") {
        tracing::warn!(
            cause,
            suppressed,
            "dead letters not counted; their metrics are left out until they are"
        );
    }
    None
}
