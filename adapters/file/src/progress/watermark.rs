//! How far a file is settled without a hole: [`LineWatermark`].

use std::collections::BTreeMap;

use crate::line_mark::LineMark;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineState {
    InFlight,
    Waiting,
    Done,
}

/// A line, or a run of settled lines that follow each other.
#[derive(Debug)]
struct Entry {
    /// The line; of a run its last one.
    mark: LineMark,
    /// How often it was delivered in this run.
    deliveries: u32,
    /// The line may still grow: it is never passed.
    unfinished: bool,
    state: LineState,
}

impl Entry {
    /// It can be part of a run.
    fn is_settled(&self) -> bool {
        self.state == LineState::Done && !self.unfinished
    }
}

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SettleOutcome {
    /// It is noted, now or by an earlier call.
    Done,
    /// The delivery it belongs to is not the line's last one, or there is none.
    Stale,
}

/// The delivered lines of one file, and the offset before which all of them are settled.
///
/// The offset never passes an unsettled line and never goes back. Bytes between lines (empty lines) count as settled
/// once what stands before them is.
///
/// Settled lines behind an unsettled one are kept as runs, so that the memory grows with the unsettled lines only, however
/// far the file is read meanwhile.
#[derive(Debug)]
pub(crate) struct LineWatermark {
    /// By the offset at which they begin.
    lines: BTreeMap<u64, Entry>,
    /// Everything before it was delivered, or was no message.
    read_to: u64,
    unsettled: usize,
    passed: Option<LineMark>,
}

impl LineWatermark {
    /// Starts at `offset`, before which everything is settled; `passed` is the last line before it, if it is known.
    pub(crate) fn new(offset: u64, passed: Option<LineMark>) -> Self {
        Self { lines: BTreeMap::new(), read_to: offset, unsettled: 0, passed }
    }

    /// Notes the first delivery of a line, in the order of the file. An unfinished one is never passed.
    pub(crate) fn deliver(&mut self, mark: LineMark, unfinished: bool) {
        debug_assert!(mark.start >= self.read_to, "lines are delivered in the order of the file");
        self.lines.insert(mark.start, Entry { mark, deliveries: 1, unfinished, state: LineState::InFlight });
        self.unsettled += 1;
        self.read_to(mark.end);
    }

    /// Notes that everything before `offset` was delivered or is no message.
    pub(crate) fn read_to(&mut self, offset: u64) {
        self.read_to = self.read_to.max(offset);
    }

    /// Notes that the line at `start` is done with.
    pub(crate) fn settle(&mut self, start: u64, delivery: u32) -> SettleOutcome {
        let Some(entry) = self.find(start) else { return self.gone(start) };
        match entry.state {
            LineState::Done => {}
            LineState::InFlight if entry.deliveries == delivery => {
                entry.state = LineState::Done;
                self.unsettled -= 1;
                self.join(start);
                self.pass();
            }
            LineState::InFlight | LineState::Waiting => return SettleOutcome::Stale,
        }
        SettleOutcome::Done
    }

    /// Notes that the line at `start` is to be delivered again; answers its mark if it was in flight.
    pub(crate) fn give_back(&mut self, start: u64, delivery: u32) -> Option<LineMark> {
        let entry = self.find(start).filter(|entry| entry.deliveries == delivery)?;
        if entry.state != LineState::InFlight {
            return None;
        }
        entry.state = LineState::Waiting;
        Some(entry.mark)
    }

    /// Notes another delivery of a line that waited; answers its number.
    pub(crate) fn deliver_again(&mut self, start: u64) -> Option<u32> {
        let entry = self.find(start).filter(|entry| entry.state == LineState::Waiting)?;
        entry.state = LineState::InFlight;
        entry.deliveries = entry.deliveries.saturating_add(1);
        Some(entry.deliveries)
    }

    /// Gives up a line that waited and cannot be delivered again.
    pub(crate) fn give_up(&mut self, start: u64) {
        if let Some(entry) = self.find(start).filter(|entry| entry.state == LineState::Waiting) {
            entry.state = LineState::Done;
            self.unsettled -= 1;
            self.join(start);
            self.pass();
        }
    }

    /// The offset before which everything is settled: the start of the first unsettled line.
    pub(crate) fn offset(&self) -> u64 {
        self.lines.first_key_value().map_or(self.read_to, |(start, _)| *start)
    }

    /// The last line before the offset.
    pub(crate) fn passed(&self) -> Option<LineMark> {
        self.passed
    }

    /// How many delivered lines are not settled.
    pub(crate) fn unsettled(&self) -> usize {
        self.unsettled
    }

    /// The line at `start`, or the run of settled lines that it is part of.
    fn find(&mut self, start: u64) -> Option<&mut Entry> {
        let (begin, entry) = self.lines.range_mut(..=start).next_back()?;
        (*begin == start || (entry.is_settled() && start < entry.mark.end)).then_some(entry)
    }

    /// Makes one run of the settled line at `start` and its settled neighbours.
    fn join(&mut self, start: u64) {
        if !self.lines.get(&start).is_some_and(Entry::is_settled) {
            return;
        }
        let next =
            self.lines.range(start + 1..).next().filter(|(_, next)| next.is_settled()).map(|(next, _)| *next);
        if let Some(next) = next.and_then(|next| self.lines.remove(&next)) {
            self.lines.insert(start, next);
        }
        let before = self.lines.range(..start).next_back().filter(|(_, before)| before.is_settled());
        if let Some(before) = before.map(|(before, _)| *before)
            && let Some(run) = self.lines.remove(&start)
        {
            self.lines.insert(before, run);
        }
    }

    fn gone(&self, start: u64) -> SettleOutcome {
        // Settled before, and passed: a repeated settlement finds what it wants.
        if start < self.offset() { SettleOutcome::Done } else { SettleOutcome::Stale }
    }

    fn pass(&mut self) {
        while let Some(first) = self.lines.first_entry()
            && first.get().is_settled()
        {
            self.passed = Some(first.remove().mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::line_mark::Digest;

    fn mark(start: u64, end: u64) -> LineMark {
        LineMark { start, end, digest: Digest([0; 32]) }
    }

    fn three() -> LineWatermark {
        let mut watermark = LineWatermark::new(0, None);
        for start in [0, 10, 20] {
            watermark.deliver(mark(start, start + 10), false);
        }
        watermark
    }

    #[test]
    fn a_hole_holds_the_offset_until_it_is_filled() {
        let mut watermark = three();
        watermark.settle(20, 1);
        watermark.settle(10, 1);
        assert_eq!((watermark.offset(), watermark.passed()), (0, None));
        watermark.settle(0, 1);
        assert_eq!((watermark.offset(), watermark.passed()), (30, Some(mark(20, 30))));
    }

    #[test]
    fn settling_again_changes_nothing() {
        let mut watermark = three();
        assert_eq!(watermark.settle(0, 1), SettleOutcome::Done);
        assert_eq!(watermark.settle(0, 1), SettleOutcome::Done);
        assert_eq!(watermark.settle(20, 1), SettleOutcome::Done);
        assert_eq!(watermark.settle(20, 1), SettleOutcome::Done);
        assert_eq!((watermark.offset(), watermark.unsettled()), (10, 1));
        assert_eq!(watermark.settle(40, 1), SettleOutcome::Stale);
    }

    #[test]
    fn a_line_given_back_holds_the_offset_and_only_its_next_delivery_settles_it() {
        let mut watermark = three();
        assert_eq!(watermark.give_back(0, 1), Some(mark(0, 10)));
        assert_eq!(watermark.give_back(0, 1), None);
        assert_eq!(watermark.settle(0, 1), SettleOutcome::Stale);
        assert_eq!(watermark.deliver_again(0), Some(2));
        assert_eq!(watermark.settle(0, 1), SettleOutcome::Stale);
        assert_eq!((watermark.offset(), watermark.unsettled()), (0, 3));
        assert_eq!(watermark.settle(0, 2), SettleOutcome::Done);
        assert_eq!((watermark.offset(), watermark.unsettled()), (10, 2));
    }

    #[test]
    fn an_unfinished_line_is_settled_but_never_passed() {
        let mut watermark = three();
        watermark.deliver(mark(30, 35), true);
        for start in [0, 10, 20, 30] {
            assert_eq!(watermark.settle(start, 1), SettleOutcome::Done);
        }
        assert_eq!((watermark.offset(), watermark.unsettled()), (30, 0));
    }

    #[test]
    fn empty_lines_are_passed_with_what_stands_before_them() {
        let mut watermark = LineWatermark::new(0, None);
        watermark.deliver(mark(0, 10), false);
        watermark.deliver(mark(14, 20), false);
        watermark.read_to(25);
        watermark.settle(0, 1);
        assert_eq!(watermark.offset(), 14);
        watermark.settle(14, 1);
        assert_eq!(watermark.offset(), 25);
    }

    #[test]
    fn memory_grows_with_the_unsettled_lines_only() {
        let mut watermark = LineWatermark::new(0, None);
        for start in (0..100_000).step_by(10) {
            watermark.deliver(mark(start, start + 10), false);
            if start != 0 && start != 500 {
                watermark.settle(start, 1);
            }
            assert!(watermark.lines.len() <= 4, "{}", watermark.lines.len());
        }
        assert_eq!((watermark.offset(), watermark.unsettled()), (0, 2));
        assert_eq!(watermark.settle(10, 1), SettleOutcome::Done, "within a run");
        watermark.settle(500, 1);
        watermark.settle(0, 1);
        assert_eq!((watermark.offset(), watermark.passed()), (100_000, Some(mark(99_990, 100_000))));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Deliver { gap: u64, size: u64 },
        Settle(prop::sample::Index),
        GiveBack(prop::sample::Index),
        Again(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0_u64..4, 1_u64..50).prop_map(|(gap, size)| Step::Deliver { gap, size }),
            3 => any::<prop::sample::Index>().prop_map(Step::Settle),
            1 => any::<prop::sample::Index>().prop_map(Step::GiveBack),
            1 => any::<prop::sample::Index>().prop_map(Step::Again),
        ]
    }

    proptest! {
        #[test]
        fn the_offset_never_passes_an_unsettled_line_and_never_goes_back(
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut watermark = LineWatermark::new(7, None);
            // The model: each line with its end, its delivery number and whether it is settled or waits.
            let mut model: BTreeMap<u64, (u64, u32, bool, bool)> = BTreeMap::new();
            let (mut end, mut last) = (7, 7);
            for step in steps {
                let pick = |index: prop::sample::Index, model: &BTreeMap<u64, _>| {
                    (!model.is_empty()).then(|| *index.get(&model.keys().copied().collect::<Vec<u64>>()))
                };
                match step {
                    Step::Deliver { gap, size } => {
                        let start = end + gap;
                        end = start + size;
                        watermark.deliver(mark(start, end), false);
                        model.insert(start, (end, 1, false, false));
                    }
                    Step::Settle(index) => if let Some(start) = pick(index, &model) {
                        let line = model.get_mut(&start).unwrap();
                        let noted = watermark.settle(start, line.1);
                        prop_assert_eq!(noted, if line.3 { SettleOutcome::Stale } else { SettleOutcome::Done });
                        line.2 |= !line.3;
                    }
                    Step::GiveBack(index) => if let Some(start) = pick(index, &model) {
                        let line = model.get_mut(&start).unwrap();
                        let given = watermark.give_back(start, line.1).is_some();
                        prop_assert_eq!(given, !line.2 && !line.3);
                        line.3 |= given;
                    }
                    Step::Again(index) => if let Some(start) = pick(index, &model) {
                        let line = model.get_mut(&start).unwrap();
                        let number = watermark.deliver_again(start);
                        prop_assert_eq!(number, line.3.then_some(line.1 + 1));
                        if let Some(number) = number {
                            (line.1, line.3) = (number, false);
                        }
                    }
                }
                let first_unsettled = model.iter().find(|(_, line)| !line.2).map(|(start, _)| *start);
                prop_assert_eq!(watermark.offset(), first_unsettled.unwrap_or(end));
                prop_assert!(watermark.offset() >= last, "went back");
                last = watermark.offset();
                prop_assert_eq!(watermark.unsettled(), model.values().filter(|line| !line.2).count());
            }
        }
    }
}
