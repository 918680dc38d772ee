//! The offset of a partition that may be committed: [`OffsetWatermark`]. Pure, for one assignment of one partition.

use std::collections::VecDeque;

/// Below this number of settled offsets no cleanup is worthwhile.
const MIN_CLEANUP: usize = 1024;

/// The offsets of one assignment of a partition, from delivery to settlement.
///
/// Every delivered record before [`committable`](Self::committable) is settled. Offsets that were never delivered (compacted or
/// aborted records, control records) are skipped.
#[derive(Debug, Default)]
pub(crate) struct OffsetWatermark {
    /// Delivered offsets at or above the watermark, ascending. The first one is never settled. Settled offsets are removed when
    /// they prevail, so that one slow record does not cost memory for every record after it.
    above: VecDeque<(u64, OffsetState)>,
    /// The number of settled ones among them.
    settled: usize,
    /// One more than the largest offset that was delivered or skipped.
    next: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OffsetState {
    InFlight,
    Settled,
}

impl OffsetWatermark {
    /// Records a delivered offset. Returns false if it, or a larger one, was delivered before.
    pub(crate) fn delivered(&mut self, offset: u64) -> bool {
        if self.next.is_some_and(|next| offset < next) {
            return false;
        }
        self.above.push_back((offset, OffsetState::InFlight));
        self.next = Some(offset + 1);
        true
    }

    /// Records that a delivered offset is settled. Returns false if it is not in flight.
    pub(crate) fn settled(&mut self, offset: u64) -> bool {
        let Some(index) = self.find(offset) else { return false };
        let state = &mut self.above[index].1;
        if *state == OffsetState::Settled {
            return false;
        }
        *state = OffsetState::Settled;
        self.settled += 1;
        while self.above.front().is_some_and(|(_, state)| *state == OffsetState::Settled) {
            self.above.pop_front();
            self.settled -= 1;
        }
        if self.settled >= MIN_CLEANUP && self.settled / 4 >= self.above.len() - self.settled {
            self.above.retain(|(_, state)| *state == OffsetState::InFlight);
            self.settled = 0;
        }
        true
    }

    /// Returns the index of an offset. Offsets are mostly contiguous, so the difference to the first one is tried first.
    fn find(&self, offset: u64) -> Option<usize> {
        let (first, _) = self.above.front()?;
        let guess = usize::try_from(offset.checked_sub(*first)?).ok()?;
        if self.above.get(guess).is_some_and(|(own, _)| *own == offset) {
            return Some(guess);
        }
        self.above.binary_search_by_key(&offset, |(own, _)| *own).ok()
    }

    /// Returns the offset to commit; `None` if nothing was delivered.
    pub(crate) fn committable(&self) -> Option<u64> {
        self.above.front().map(|(offset, _)| *offset).or(self.next)
    }

    /// Records that no record exists from `from` up to `to`, where `from` is [`next`](Self::next). Returns false if another record
    /// was delivered meanwhile.
    pub(crate) fn skip(&mut self, from: u64, to: u64) -> bool {
        let holds = from <= to && self.next.is_none_or(|next| next == from);
        if holds {
            self.next = Some(to);
        }
        holds
    }

    /// Returns one more than the largest offset that was delivered or [skipped](Self::skip); `None` before the first.
    pub(crate) fn next(&self) -> Option<u64> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Offsets with gaps, and the order in which they are settled; only a part of them is.
    fn runs() -> impl Strategy<Value = (Vec<u64>, Vec<u64>)> {
        proptest::collection::btree_set(0_u64..300, 1..80).prop_flat_map(|offsets| {
            let offsets: Vec<_> = offsets.into_iter().collect();
            let all = offsets.len();
            (Just(offsets.clone()), proptest::sample::subsequence(offsets, 0..=all).prop_shuffle())
        })
    }

    proptest! {
        /// At each step: nothing unsettled lies below, it is as high as possible, and it never decreases.
        #[test]
        fn the_watermark_is_the_first_unsettled_offset((offsets, settled) in runs()) {
            let mut watermark = OffsetWatermark::default();
            prop_assert_eq!(watermark.committable(), None);
            let mut open: BTreeSet<_> = offsets.iter().copied().collect();
            for offset in &offsets {
                prop_assert!(watermark.delivered(*offset));
            }
            let end = offsets[offsets.len() - 1] + 1;
            let mut before = watermark.committable();
            for offset in settled {
                prop_assert!(watermark.settled(offset));
                prop_assert!(!watermark.settled(offset), "settled twice");
                open.remove(&offset);
                let now = watermark.committable();
                prop_assert_eq!(now, Some(open.first().copied().unwrap_or(end)));
                prop_assert!(now >= before, "it went back");
                before = now;
            }
        }

        /// Deliveries and settlements by turns: the same holds.
        #[test]
        fn deliveries_may_come_while_others_are_settled(
            steps in proptest::collection::vec((1_u64..5, any::<prop::sample::Index>(), any::<bool>()), 1..200),
        ) {
            let (mut watermark, mut open, mut next) = (OffsetWatermark::default(), Vec::<u64>::new(), 0);
            for (gap, pick, settle) in steps {
                if settle && !open.is_empty() {
                    let offset = open.remove(pick.index(open.len()));
                    prop_assert!(watermark.settled(offset));
                } else {
                    let offset = next + gap - 1;
                    prop_assert!(watermark.delivered(offset));
                    open.push(offset);
                    next = offset + 1;
                }
                if next > 0 {
                    prop_assert_eq!(watermark.committable(), Some(open.iter().copied().min().unwrap_or(next)));
                }
            }
        }
    }

    #[test]
    fn what_holds_no_records_is_passed_only_behind_the_last_one() {
        let mut watermark = OffsetWatermark::default();
        assert!(watermark.delivered(4));
        assert!(!watermark.skip(4, 9), "it would go past what is in flight");
        assert!(watermark.skip(5, 9));
        assert_eq!((watermark.committable(), watermark.next()), (Some(4), Some(9)));
        assert!(!watermark.delivered(7));
        assert!(watermark.settled(4));
        assert_eq!(watermark.committable(), Some(9));
        let mut untouched = OffsetWatermark::default();
        assert!(untouched.skip(3, 4));
        assert_eq!(untouched.committable(), Some(4));
    }

    #[test]
    fn a_held_offset_costs_no_memory_for_each_that_comes_after_it() {
        let mut watermark = OffsetWatermark::default();
        for offset in 0..100_000 {
            assert!(watermark.delivered(offset));
            assert!(offset == 7 || watermark.settled(offset));
            assert!(watermark.above.len() <= 2 * MIN_CLEANUP, "{} at {offset}", watermark.above.len());
        }
        assert_eq!(watermark.committable(), Some(7));
        assert!(!watermark.settled(99_999), "settled twice");
        assert!(watermark.settled(7));
        assert_eq!(watermark.committable(), Some(100_000));
    }

    #[test]
    fn an_offset_is_delivered_once_and_in_order() {
        let mut watermark = OffsetWatermark::default();
        assert!(watermark.delivered(7));
        assert!(!watermark.delivered(7));
        assert!(!watermark.delivered(3), "it would be committed over");
        assert!(!watermark.settled(3));
        assert_eq!(watermark.committable(), Some(7));
    }
}
