//! Counts of observed values by buckets: [`Distribution`].

use parking_lot::Mutex;

use super::Measure;

/// The distribution of a [`Measure`] as a histogram: how many values are in each of its buckets. An
/// [`Observer`](super::Observer) that keeps its own histograms adds the values of a batch under one lock.
///
/// ```
/// use onceward::telemetry::{Distribution, Measure};
/// let attempts = Distribution::new(Measure::Attempts);
/// attempts.add(&[1.0, 1.0, 3.0]);
/// let counted = attempts.read();
/// assert_eq!((counted.count, counted.sum), (3, 5.0));
/// assert_eq!(counted.buckets[..3], [(1.0, 2), (2.0, 0), (3.0, 1)]);
/// ```
#[derive(Debug)]
pub struct Distribution {
    bounds: &'static [f64],
    counts: Mutex<SumAndBuckets>,
}

#[derive(Debug)]
struct SumAndBuckets {
    sum: f64,
    /// One for each bound, and one for larger values.
    buckets: Box<[u64]>,
}

/// What a [`Distribution`] has counted so far.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DistributionCounts {
    /// The sum of all values.
    pub sum: f64,
    /// The number of all values.
    pub count: u64,
    /// Upper bounds, and how many values were at most as large and larger than the bound before; the last bound is
    /// [`f64::MAX`].
    pub buckets: Vec<(f64, u64)>,
}

impl Distribution {
    /// An empty distribution, with the [buckets](Measure::buckets) of `measure`.
    pub fn new(measure: Measure) -> Self {
        let bounds = measure.buckets();
        let buckets = vec![0; bounds.len() + 1].into();
        Self { bounds, counts: Mutex::new(SumAndBuckets { sum: 0.0, buckets }) }
    }

    /// Adds values.
    pub fn add(&self, values: &[f64]) {
        let mut counts = self.counts.lock();
        let SumAndBuckets { sum, buckets } = &mut *counts;
        // Neighbours are mostly in one bucket: it is looked for where a value is not in that of the one before.
        let (mut place, mut above, mut upto) = (self.bounds.len(), f64::NAN, f64::NAN);
        for value in values {
            *sum += value;
            if !(*value > above && *value <= upto) {
                place = self.place(*value);
                let bound = |place: Option<usize>| place.and_then(|place| self.bounds.get(place)).copied();
                above = bound(place.checked_sub(1)).unwrap_or(f64::NEG_INFINITY);
                upto = bound(Some(place)).unwrap_or(f64::INFINITY);
            }
            buckets[place] += 1;
        }
    }

    /// Adds values, each as often as it says.
    ///
    /// ```
    /// use onceward::telemetry::{Distribution, Measure};
    /// let attempts = Distribution::new(Measure::Attempts);
    /// attempts.add_counted(&[(1.0, 2), (3.0, 1)]);
    /// assert_eq!((attempts.read().count, attempts.read().sum), (3, 5.0));
    /// ```
    pub fn add_counted(&self, values: &[(f64, u64)]) {
        let mut counts = self.counts.lock();
        for (value, count) in values {
            counts.sum += value * *count as f64;
            counts.buckets[self.place(*value)] += count;
        }
    }

    /// The bucket of a value.
    fn place(&self, value: f64) -> usize {
        self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len())
    }

    /// What was counted so far.
    pub fn read(&self) -> DistributionCounts {
        let counts = self.counts.lock();
        let bounds = self.bounds.iter().copied().chain([f64::MAX]);
        DistributionCounts {
            sum: counts.sum,
            count: counts.buckets.iter().sum(),
            buckets: bounds.zip(counts.buckets.iter().copied()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_for_the_first_bound_that_is_not_smaller() {
        let waits = Distribution::new(Measure::QueueWait);
        waits.add(&[0.0, 0.000_5, 0.000_6, 300.0, 300.1, f64::NAN]);
        let counted = waits.read();
        assert_eq!((counted.count, counted.buckets.len()), (6, 18));
        assert_eq!(counted.buckets[..3], [(0.000_5, 2), (0.001, 1), (0.002_5, 0)]);
        assert_eq!(counted.buckets[16..], [(300.0, 1), (f64::MAX, 2)]);
    }
}
