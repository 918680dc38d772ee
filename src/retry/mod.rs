//! Retry policy and backoff: [`RetryPolicy`], [`Backoff`], [`Jitter`].

use std::time::Duration;

/// How the delays are spread, so that many failed messages are not redelivered at the same moment. The forms are those
/// of the AWS architecture blog, "Exponential Backoff And Jitter" (2015).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Jitter {
    /// Exactly the exponential delay.
    None,
    /// Anything from zero to the exponential delay.
    #[default]
    Full,
    /// Half the exponential delay, and anything up to the other half.
    Equal,
    /// Anything from the initial delay to three times the previous one.
    Decorrelated,
}

/// Exponential delays: `initial`, twice that, four times that, up to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first delay.
    pub initial: Duration,
    /// The longest delay.
    pub max: Duration,
    /// How delays are spread.
    pub jitter: Jitter,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), max: Duration::from_secs(300), jitter: Jitter::Full }
    }
}

impl Backoff {
    /// The delay before the next try, after `failures` failures (from 1) of which the last was followed by `previous`.
    /// It is never longer than `max`.
    pub fn delay(&self, failures: u32, previous: Duration, rng: &mut fastrand::Rng) -> Duration {
        let exponent = failures.saturating_sub(1).min(31);
        let exponential = self.initial.saturating_mul(1 << exponent).min(self.max);
        match self.jitter {
            Jitter::None => exponential,
            Jitter::Full => between(Duration::ZERO, exponential, rng),
            Jitter::Equal => between(exponential / 2, exponential, rng),
            Jitter::Decorrelated => {
                let upper = previous.saturating_mul(3).clamp(self.initial, self.max);
                between(self.initial.min(self.max), upper, rng)
            }
        }
    }
}

fn between(low: Duration, high: Duration, rng: &mut fastrand::Rng) -> Duration {
    let low_us = u64::try_from(low.as_micros()).unwrap_or(u64::MAX);
    let high_us = u64::try_from(high.as_micros()).unwrap_or(u64::MAX).max(low_us);
    Duration::from_micros(rng.u64(low_us..=high_us))
}

/// How often and when a failed message is tried again. Attempts are counted in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// After this many failed runs the message is dead-lettered. At least 1.
    pub max_attempts: u32,
    /// When the next attempt starts.
    pub backoff: Backoff,
}

impl Default for RetryPolicy {
    /// Ten attempts over four minutes on average and nine at most, so that a message outlives the restart of what its
    /// handler needs.
    fn default() -> Self {
        Self { max_attempts: 10, backoff: Backoff::default() }
    }
}

impl RetryPolicy {
    /// The longest time all attempts together can wait: part of the time in which duplicates can still arrive.
    pub fn span(&self) -> Duration {
        let Backoff { initial, max, jitter } = self.backoff;
        let growth = if jitter == Jitter::Decorrelated { 3 } else { 2 };
        let (mut delay, mut span) = (initial.min(max), Duration::ZERO);
        let mut waits = self.max_attempts.saturating_sub(1);
        while waits > 0 {
            if delay == max || delay.is_zero() {
                return span.saturating_add(delay.saturating_mul(waits));
            }
            span = span.saturating_add(delay);
            delay = delay.saturating_mul(growth).min(max);
            waits -= 1;
        }
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(jitter: Jitter) -> Vec<Duration> {
        let backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(2), jitter };
        let mut rng = fastrand::Rng::with_seed(7);
        let mut previous = Duration::ZERO;
        (1..=40)
            .map(|failures| {
                previous = backoff.delay(failures, previous, &mut rng);
                previous
            })
            .collect()
    }

    #[test]
    fn without_jitter_delays_double_up_to_the_longest() {
        let delays = delays(Jitter::None);
        assert_eq!(delays[..5], [100, 200, 400, 800, 1600].map(Duration::from_millis));
        assert!(delays[5..].iter().all(|delay| *delay == Duration::from_secs(2)));
    }

    #[test]
    fn the_span_is_the_sum_of_the_longest_waits() {
        let policy = |max_attempts, jitter| RetryPolicy {
            max_attempts,
            backoff: Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(300), jitter },
        };
        assert_eq!(policy(10, Jitter::Full).span(), Duration::from_secs(511));
        assert_eq!(policy(11, Jitter::None).span(), Duration::from_secs(511 + 300));
        assert_eq!(policy(5, Jitter::Decorrelated).span(), Duration::from_secs(1 + 3 + 9 + 27));
        assert_eq!(policy(1, Jitter::Full).span(), Duration::ZERO);
        assert_eq!(policy(1_000_000, Jitter::Full).span().as_secs(), 511 + 300 * (1_000_000 - 10));
        assert_eq!(RetryPolicy::default().span(), Duration::from_secs(511));
    }

    #[test]
    fn every_jitter_stays_in_its_bounds_and_spreads() {
        let exponential = delays(Jitter::None);
        for jitter in [Jitter::Full, Jitter::Equal, Jitter::Decorrelated] {
            let delays = delays(jitter);
            assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(2)), "{jitter:?}");
            let distinct: std::collections::HashSet<_> = delays.iter().collect();
            assert!(distinct.len() > 20, "{jitter:?} does not spread: {delays:?}");
            for (delay, exponential) in delays.iter().zip(&exponential) {
                match jitter {
                    Jitter::Equal => assert!(*delay >= *exponential / 2 && delay <= exponential),
                    Jitter::Full => assert!(delay <= exponential),
                    _ => assert!(*delay >= Duration::from_millis(100)),
                }
            }
        }
    }
}
