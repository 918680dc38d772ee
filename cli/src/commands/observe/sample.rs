//! Sample of hashed identities in bounded space, all of whose occurrences are counted: [`Sample`].

use std::collections::HashMap;

/// The most identities that are kept. Shares of them are then within 1 % of those of all (95 % confidence).
const MOST: usize = 1 << 15;

/// Identities whose hashes begin with enough zero bits, each with a value of its own.
///
/// At first, all are kept. Whenever there are too many, the half with a one in the next bit is dropped, and is never taken again: an
/// identity that is in the sample has been in it since its first occurrence.
#[derive(Debug)]
pub(super) struct Sample<T> {
    /// The zero bits that a hash must begin with.
    zeros: u32,
    kept: HashMap<u128, T>,
    most: usize,
}

impl<T> Default for Sample<T> {
    fn default() -> Self {
        Self::of_at_most(MOST)
    }
}

impl<T> Sample<T> {
    fn of_at_most(most: usize) -> Self {
        Self { zeros: 0, kept: HashMap::new(), most }
    }

    /// Changes the value of the identity `hash`, or gives it its `first` one. It does nothing for an identity that is not in the sample.
    pub(super) fn count(&mut self, hash: [u8; 16], first: T, change: impl FnOnce(&mut T)) {
        let hash = u128::from_be_bytes(hash);
        if hash.leading_zeros() < self.zeros {
            return;
        }
        self.kept.entry(hash).and_modify(change).or_insert(first);
        while self.kept.len() > self.most {
            self.zeros += 1;
            let zeros = self.zeros;
            self.kept.retain(|hash, _| hash.leading_zeros() >= zeros);
        }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.kept.values()
    }

    /// The number of identities in the sample.
    pub(super) fn size(&self) -> u64 {
        self.kept.len() as u64
    }

    /// The number of all identities that occurred: exact while [`is_complete`](Self::is_complete), an estimate otherwise.
    pub(super) fn distinct(&self) -> u64 {
        self.size() << self.zeros.min(40)
    }

    /// True if the sample has every identity.
    pub(super) fn is_complete(&self) -> bool {
        self.zeros == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As evenly distributed as a hash.
    fn hash(number: u128) -> [u8; 16] {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes()
    }

    #[test]
    fn a_small_sample_has_everything() {
        let mut sample = Sample::of_at_most(10);
        (0..10).for_each(|number| sample.count(hash(number), 1, |count| *count += 1));
        sample.count(hash(3), 1, |count| *count += 1);
        assert!(sample.is_complete() && sample.distinct() == 10);
        assert_eq!(sample.values().filter(|count| **count == 2).count(), 1);
    }

    #[test]
    fn a_large_one_is_bounded_and_every_occurrence_of_what_it_has_is_counted() {
        let mut sample = Sample::of_at_most(1_000);
        for _ in 0..3 {
            (0..50_000).for_each(|number| sample.count(hash(number), 1, |count| *count += 1));
            assert!(sample.size() <= 1_000);
        }
        assert!(!sample.is_complete());
        assert!(sample.values().all(|count| *count == 3), "an occurrence was missed");
        let distinct = sample.distinct();
        assert!((45_000..55_000).contains(&distinct), "{distinct}");
    }
}
