//! Distribution of the ages of duplicates, in constant space: [`AgeSketch`].

use std::time::Duration;

/// The ratio of one bucket's bound to that before it: quantiles are at most this much too large.
const GROWTH: f64 = 1.05;

/// The bound of the first bucket, in seconds.
const SMALLEST: f64 = 0.001;

/// Buckets up to 20 years.
const BUCKETS: usize = 560;

/// The upper bounds of the bars of ages.
pub(super) const BOUNDS: [Duration; 10] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(3_600),
    Duration::from_secs(6 * 3_600),
    Duration::from_secs(24 * 3_600),
    Duration::from_secs(3 * 86_400),
    Duration::from_secs(7 * 86_400),
    Duration::from_secs(30 * 86_400),
];

/// Ages by buckets whose bounds grow by 5 %, and the largest one as it was.
#[derive(Debug)]
pub(super) struct AgeSketch {
    /// How many ages are at most `SMALLEST · GROWTH^index`, and larger than the bound before.
    buckets: Box<[u64]>,
    /// How many ages are at most each of [`BOUNDS`], and larger than that before; and how many are larger than the last.
    by_bounds: [u64; BOUNDS.len() + 1],
    count: u64,
    largest: Duration,
}

impl Default for AgeSketch {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS].into(),
            by_bounds: [0; BOUNDS.len() + 1],
            count: 0,
            largest: Duration::ZERO,
        }
    }
}

impl AgeSketch {
    pub(super) fn add(&mut self, age: Duration) {
        let steps = (age.as_secs_f64() / SMALLEST).ln() / GROWTH.ln();
        // A negative number, as of an age below the first bound, becomes 0.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, as intended")]
        let index = (steps.ceil() as usize).min(BUCKETS - 1);
        self.buckets[index] += 1;
        self.by_bounds[BOUNDS.partition_point(|bound| *bound < age)] += 1;
        self.count += 1;
        self.largest = self.largest.max(age);
    }

    /// The largest age; `None` without any.
    pub(super) fn largest(&self) -> Option<Duration> {
        (self.count > 0).then_some(self.largest)
    }

    /// The age that the share `share` (0 to 1) of all ages does not exceed, at most 5 % too large; `None` without any.
    pub(super) fn quantile(&self, share: f64) -> Option<Duration> {
        #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
        let wanted = self.count as f64 * share;
        let mut passed = 0;
        let index = self.buckets.iter().position(|count| {
            passed += count;
            #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
            let passed = passed as f64;
            passed >= wanted && passed > 0.0
        })?;
        Some(bound(index).min(self.largest))
    }

    /// How many ages are at most each of [`BOUNDS`], and larger than that before; and how many are larger than the last.
    pub(super) fn by_bounds(&self) -> [u64; BOUNDS.len() + 1] {
        self.by_bounds
    }
}

fn bound(index: usize) -> Duration {
    #[allow(clippy::cast_precision_loss, reason = "there are few buckets")]
    Duration::from_secs_f64(SMALLEST * GROWTH.powf(index as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn quantiles_are_within_the_growth_of_a_bucket_and_the_largest_is_exact() {
        let mut ages = AgeSketch::default();
        assert_eq!((ages.quantile(0.5), ages.largest()), (None, None));
        (1..=1_000).for_each(|second| ages.add(second * SECOND));
        for (share, exact) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1_000.0)] {
            let found = ages.quantile(share).unwrap().as_secs_f64();
            assert!(found >= exact && found <= exact * GROWTH, "{share}: {found}");
        }
        assert_eq!(ages.largest(), Some(1_000 * SECOND));
    }

    #[test]
    fn the_smallest_and_the_largest_ages_have_a_bucket() {
        let mut ages = AgeSketch::default();
        ages.add(Duration::ZERO);
        ages.add(Duration::from_secs(u64::from(u32::MAX)));
        assert_eq!(ages.quantile(0.0), Some(Duration::from_millis(1)));
        assert!(ages.quantile(1.0) > Some(Duration::from_secs(19 * 365 * 86_400)));
        let bars = ages.by_bounds();
        assert_eq!((bars[0], bars[BOUNDS.len()]), (1, 1));
    }

    #[test]
    fn ages_are_counted_between_bounds() {
        let mut ages = AgeSketch::default();
        // The bound of 59 s in a sketch is beyond a minute.
        [1, 20, 59, 60, 4_000].into_iter().for_each(|second| ages.add(second * SECOND));
        assert_eq!(ages.by_bounds(), [1, 0, 3, 0, 0, 1, 0, 0, 0, 0, 0]);
    }
}
