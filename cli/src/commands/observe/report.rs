//! The report of a run in observe mode, as data: [`ObserveReport`].

use onceward::telemetry::Counter;
use serde::Serialize;

use super::ages::BOUNDS;
use super::key_advice::{self, KeyAdvice, KeyFacts, KeyOrigin};
use super::limits::{self, Doubts};
use super::observation::{Observation, Observed};
use super::ttl::{self, TtlAdvice, TtlFacts};
use crate::commands::run::{EndCause, EndedRun};
use crate::config::{Config, FingerprintConfig, KeyPart, pipeline_config};
use crate::output::millis;
use crate::registry;

/// Everything that a run in observe mode has shown, and what follows.
#[derive(Debug, Serialize)]
pub(super) struct ObserveReport {
    pub(super) scope: String,
    pub(super) source: String,
    pub(super) store: String,
    pub(super) observed_ms: u64,
    pub(super) ended_by: &'static str,
    pub(super) deliveries: DeliveryCounts,
    pub(super) duplicates: DuplicateCounts,
    /// Of duplicates of completed keys; `None` without any.
    pub(super) duplicate_age_ms: Option<AgeFigures>,
    pub(super) keys: KeyFigures,
    pub(super) mismatches: u64,
    pub(super) key_from: Vec<KeyOrigin>,
    /// `None` if payloads are not compared as a whole.
    pub(super) payloads: Option<PayloadFigures>,
    pub(super) recommended: Recommended,
    pub(super) limits: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct DeliveryCounts {
    pub(super) received: u64,
    /// Looked up in the store.
    pub(super) with_key: u64,
    pub(super) without_key: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct DuplicateCounts {
    pub(super) count: u64,
    pub(super) of_completed: u64,
    pub(super) while_in_progress: u64,
    pub(super) of_dead: u64,
    /// Of the deliveries with a key; `None` without any.
    pub(super) rate: Option<ShareEstimate>,
}

/// A share, and between which values it is with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct ShareEstimate {
    pub(super) value: f64,
    pub(super) from: f64,
    pub(super) to: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct AgeFigures {
    pub(super) p50: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
    pub(super) histogram: Vec<HistogramBar>,
}

/// Duplicates with an age of at most `up_to`, in milliseconds, and more than that of the bar before; `None`: all others.
#[derive(Debug, Serialize)]
pub(super) struct HistogramBar {
    pub(super) up_to: Option<u64>,
    pub(super) count: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct KeyFigures {
    pub(super) distinct: u64,
    /// `distinct` is estimated from a sample.
    pub(super) is_estimate: bool,
    pub(super) sampled: u64,
    /// The share of keys with one delivery.
    pub(super) never_repeated: Option<ShareEstimate>,
    /// The sampled keys with 1, 2, 3, 4, 5 to 9, and 10 or more deliveries.
    pub(super) by_deliveries: [u64; 6],
}

#[derive(Debug, Serialize)]
pub(super) struct PayloadFigures {
    pub(super) distinct: u64,
    pub(super) is_estimate: bool,
    /// The share of payloads that came under more than one key.
    pub(super) under_several_keys: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Recommended {
    pub(super) key: KeyAdvice,
    pub(super) ttl: TtlAdvice,
}

impl ObserveReport {
    /// The report on `ended`, a run of `config`.
    pub(super) fn new(config: &Config, ended: &EndedRun, observation: &Observation) -> Self {
        observation.read(|observed| Self::of(config, ended, observed))
    }

    fn of(config: &Config, ended: &EndedRun, observed: &Observed) -> Self {
        let counters = ended.summary.counters();
        let without_key = counters.get(Counter::MissingKeys);
        let duplicates = observed.completed + observed.in_progress + observed.dead;
        let key_from = key_origins(config, &counters.key_sources());
        let payloads = payloads(config, observed);
        let ttl = ttl::recommend(&TtlFacts {
            configured: config.limits().ttl.get(),
            observed: ended.lasted,
            largest: observed.ages.largest(),
            retention: ended.retention,
            retries: pipeline_config(config, false).retry.span(),
        });
        let key = key_advice::recommend(&KeyFacts {
            origins: key_from.clone(),
            without_key,
            duplicates,
            mismatches: observed.mismatches,
            payloads_under_several: payloads.as_ref().map(|found| found.under_several_keys),
        });
        let keys = keys(observed);
        let limits = limits::of(&Doubts {
            lasted: ended.lasted,
            ttl: config.limits().ttl.get(),
            is_in_memory: config.store.plugin().facts().is_in_memory,
            received: ended.summary.received(),
            unsighted: ended.summary.received().saturating_sub(observed.sighted + without_key),
            in_progress: observed.in_progress,
            sampled: keys.is_estimate.then_some(keys.sampled),
        });
        Self {
            scope: config.scope.clone(),
            source: registry::describe_source(config),
            store: registry::describe_store(config),
            observed_ms: millis(ended.lasted),
            ended_by: match ended.cause {
                EndCause::Empty => "empty",
                EndCause::Limit => "limit",
                EndCause::Signal => "signal",
            },
            deliveries: DeliveryCounts {
                received: ended.summary.received(),
                with_key: observed.sighted,
                without_key,
            },
            duplicates: DuplicateCounts {
                count: duplicates,
                of_completed: observed.completed,
                while_in_progress: observed.in_progress,
                of_dead: observed.dead,
                rate: ShareEstimate::of(duplicates, observed.sighted),
            },
            duplicate_age_ms: ages(observed),
            keys,
            mismatches: observed.mismatches,
            key_from,
            payloads,
            recommended: Recommended { key, ttl },
            limits,
        }
    }
}

fn key_origins(config: &Config, counts: &[(String, u64)]) -> Vec<KeyOrigin> {
    let entries =
        config.key.from.iter().zip(counts.iter().map(|(_, count)| *count).chain(std::iter::repeat(0)));
    let origin = |(source, keys): (&crate::config::KeySource, u64)| KeyOrigin {
        // A text or a list of texts: it is always serialized.
        from: serde_json::to_value(source).unwrap_or_default(),
        keys,
        is_position: source.parts() == [KeyPart::Position],
    };
    entries.map(origin).collect()
}

fn ages(observed: &Observed) -> Option<AgeFigures> {
    let ages = &observed.ages;
    let (p50, p99, max) = (ages.quantile(0.5)?, ages.quantile(0.99)?, ages.largest()?);
    let bounds = BOUNDS.iter().map(|bound| Some(millis(*bound))).chain([None]);
    let histogram =
        bounds.zip(ages.by_bounds()).map(|(up_to, count)| HistogramBar { up_to, count }).collect();
    Some(AgeFigures { p50: millis(p50), p99: millis(p99), max: millis(max), histogram })
}

fn keys(observed: &Observed) -> KeyFigures {
    let mut by_deliveries = [0; 6];
    for deliveries in observed.keys.values() {
        by_deliveries[match deliveries {
            0..=1 => 0,
            2 => 1,
            3 => 2,
            4 => 3,
            5..=9 => 4,
            _ => 5,
        }] += 1;
    }
    let sampled = observed.keys.size();
    KeyFigures {
        distinct: observed.keys.distinct(),
        is_estimate: !observed.keys.is_complete(),
        sampled,
        never_repeated: ShareEstimate::of(by_deliveries[0], sampled),
        by_deliveries,
    }
}

fn payloads(config: &Config, observed: &Observed) -> Option<PayloadFigures> {
    let whole = matches!(config.key.fingerprint, FingerprintConfig::Json | FingerprintConfig::Bytes);
    let payloads = &observed.payloads;
    let several = payloads.values().filter(|keys| keys.has_others).count() as u64;
    let share = ShareEstimate::of(several, payloads.size()).filter(|_| whole)?;
    Some(PayloadFigures {
        distinct: payloads.distinct(),
        is_estimate: !payloads.is_complete(),
        under_several_keys: share.value,
    })
}

impl ShareEstimate {
    /// The share of `part` in `whole`, with Wilson's interval; `None` of nothing.
    pub(super) fn of(part: u64, whole: u64) -> Option<Self> {
        /// The quantile of the normal distribution for 95 %.
        const Z: f64 = 1.96;
        if whole == 0 {
            return None;
        }
        #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
        let (part, n) = (part as f64, whole as f64);
        let value = part / n;
        let centre = (part + Z * Z / 2.0) / (n + Z * Z);
        let half = Z / (n + Z * Z) * (part * (n - part) / n + Z * Z / 4.0).sqrt();
        Some(Self { value, from: (centre - half).max(0.0), to: (centre + half).min(1.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_few_has_a_wide_interval_and_none_found_is_not_none_at_all() {
        assert_eq!(ShareEstimate::of(0, 0), None);
        let none = ShareEstimate::of(0, 100).unwrap();
        assert!(none.value == 0.0 && none.from == 0.0 && (0.03..0.04).contains(&none.to), "{none:?}");
        let half = ShareEstimate::of(50, 100).unwrap();
        assert!((0.40..0.41).contains(&half.from) && (0.59..0.60).contains(&half.to), "{half:?}");
        let many = ShareEstimate::of(50_000, 100_000).unwrap();
        assert!(many.to - many.from < 0.007, "{many:?}");
    }
}
