//! Limits that a pipeline and a [`Deduplicator`](crate::Deduplicator) share.

use std::time::Duration;

/// Every wait is at most this long, so that a clock can hold its end.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The error in a lease and a TTL, if there is one.
pub(crate) fn lease_and_ttl(lease: Duration, ttl: Duration) -> Result<(), String> {
    if lease < Duration::from_millis(100) || lease > Duration::from_secs(12 * 3600) {
        return Err(format!("lease is {lease:?}; it must be from 100 ms to 12 h"));
    }
    if ttl < lease {
        return Err(format!(
            "ttl is {ttl:?}, shorter than the lease {lease:?}; raise ttl, or keys are forgotten while they run"
        ));
    }
    Ok(())
}

/// The error in a wait, if there is one.
pub(crate) fn wait(name: &str, value: Duration, may_be_zero: bool) -> Result<(), String> {
    if value.is_zero() && !may_be_zero {
        return Err(format!("{name} is zero; give it a duration"));
    }
    if value > LONGEST {
        return Err(format!("{name} is {value:?}; it must be at most 365 d"));
    }
    Ok(())
}

/// The error in a count, if there is one.
pub(crate) fn range(name: &str, value: usize, low: usize, high: usize) -> Result<(), String> {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(format!("{name} is {value}; it must be from {low} to {high}"))
    }
}

/// Attempts a key may have.
pub(crate) const MOST_ATTEMPTS: usize = 1_000_000;
