//! The recommended `ttl`, from the observed ages and the redelivery horizon of the source: [`recommend`].

use std::time::Duration;

use serde::Serialize;

use crate::commands::keys::time;
use crate::config::HumanDuration;

/// The facts that a `ttl` depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct TtlFacts {
    /// The `ttl` of the configuration.
    pub(super) configured: Duration,
    /// How long the run lasted.
    pub(super) observed: Duration,
    /// The largest age of a duplicate.
    pub(super) largest: Option<Duration>,
    /// How long the source keeps messages, if it names a limit.
    pub(super) retention: Option<Duration>,
    /// The longest time that all attempts of a message can wait.
    pub(super) retries: Duration,
}

/// A `ttl`, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct TtlAdvice {
    pub(super) ttl: HumanDuration,
    pub(super) configured: HumanDuration,
    pub(super) reasons: Vec<String>,
}

/// Twice the largest observed age or the horizon of the source, whichever is longer; shorter than what is configured only if
/// the run was long enough to see duplicates of that age, and the horizon is known.
pub(super) fn recommend(facts: &TtlFacts) -> TtlAdvice {
    let horizon = facts.retries.saturating_add(facts.retention.unwrap_or_default());
    let margin = facts.largest.unwrap_or_default().saturating_mul(2);
    let needed = round_up(horizon.max(margin));
    let human = |duration: Duration| HumanDuration::new(round_up(duration));
    let mut reasons = vec![match facts.retention {
        Some(retention) => format!(
            "duplicates can arrive for {}: the source keeps messages for {}, and retries take up to {}",
            human(horizon),
            human(retention),
            human(facts.retries)
        ),
        None => format!(
            "retries take up to {}; the source names no limit for how long it keeps messages, so add the longest time that a message \
             may wait there",
            human(facts.retries)
        ),
    }];
    if let Some(largest) = facts.largest {
        reasons.push(format!(
            "the largest observed age is {}; twice that is {}",
            time(largest),
            human(margin)
        ));
    }
    let is_long_enough = facts.retention.is_some() && facts.observed >= facts.configured;
    let ttl = if needed > facts.configured || is_long_enough {
        needed
    } else {
        reasons.push(match facts.retention {
            Some(_) => format!(
                "the run was shorter ({}) than the configured ttl, so that it is no reason for a shorter one",
                time(facts.observed)
            ),
            None => "without a limit of the source there is no reason for a shorter one than is configured"
                .to_owned(),
        });
        facts.configured
    };
    TtlAdvice { ttl: HumanDuration::new(ttl), configured: HumanDuration::new(facts.configured), reasons }
}

/// Up to the next whole second, minute, hour or day, as is readable for the length.
fn round_up(duration: Duration) -> Duration {
    let unit = match duration.as_secs() {
        0..60 => 1,
        60..3_600 => 60,
        3_600..172_800 => 3_600,
        _ => 86_400,
    };
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    Duration::from_secs(whole.div_ceil(unit).saturating_mul(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const DAY: Duration = Duration::from_secs(86_400);

    fn facts() -> TtlFacts {
        TtlFacts {
            configured: 8 * DAY,
            observed: HOUR,
            largest: None,
            retention: Some(7 * DAY),
            retries: HOUR / 2,
        }
    }

    #[test]
    fn a_ttl_above_horizon_and_ages_is_kept_since_a_short_run_is_no_reason_to_lower_it() {
        let advice = recommend(&facts());
        assert_eq!(advice.ttl, advice.configured);
        assert!(
            advice.reasons[0]
                .contains("for 8d: the source keeps messages for 7d, and retries take up to 30m")
        );
        assert!(advice.reasons.last().unwrap().contains("shorter (1h)"), "{advice:?}");
    }

    #[test]
    fn it_is_raised_to_the_horizon_and_to_twice_the_largest_age() {
        let horizon = recommend(&TtlFacts { configured: DAY, ..facts() });
        assert_eq!(horizon.ttl.get(), 8 * DAY);
        let aged = recommend(&TtlFacts { largest: Some(5 * DAY), ..facts() });
        assert_eq!(aged.ttl.get(), 10 * DAY);
        assert!(aged.reasons[1].contains("is 5d; twice that is 10d"), "{aged:?}");
    }

    #[test]
    fn it_is_lowered_only_after_a_run_as_long_as_it_and_with_a_known_horizon() {
        let long = TtlFacts { configured: 30 * DAY, observed: 31 * DAY, largest: Some(HOUR), ..facts() };
        assert_eq!(recommend(&long).ttl.get(), 8 * DAY);
        let unknown = recommend(&TtlFacts { retention: None, ..long });
        assert_eq!(unknown.ttl.get(), 30 * DAY);
        assert!(unknown.reasons[0].contains("names no limit"), "{unknown:?}");
    }

    #[test]
    fn durations_are_rounded_up_to_what_people_write() {
        for (seconds, rounded) in
            [(0.2, "1s"), (59.0, "59s"), (61.0, "2m"), (3_601.0, "2h"), (172_801.0, "3d")]
        {
            let found = HumanDuration::new(round_up(Duration::from_secs_f64(seconds)));
            assert_eq!(found.to_string(), rounded);
        }
    }
}
