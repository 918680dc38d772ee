//! The sizes of the transactions of a part: [`PartPlan`].

/// Why a transaction of several records committed nothing, or may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TogetherFailure {
    /// It could not be opened.
    Transaction,
    /// The record at this index failed, or requires a transaction of its own.
    Record(usize),
    /// Of so many records one cannot be committed, and it is not known which: its position was committed before, or a deferred constraint
    /// fails.
    Commit(usize),
    /// The commit of so many records was not answered.
    Unanswered(usize),
}

/// How many records the next transaction of a part has. A record that failed runs in a transaction of its own, and those before it in
/// one without it. After repeated failures more records run alone, so that few of them run twice.
#[derive(Debug, Default)]
pub(super) struct PartPlan {
    /// So many of the next records run together, because the one behind them has failed.
    before_failed: usize,
    /// So many of the next records run alone, after those.
    alone: usize,
    failures: u32,
    /// The next record is the first one of a transaction whose commit was not answered.
    is_unanswered: bool,
}

impl PartPlan {
    /// The number of records of the next transaction, of `left`: 1 is a record alone.
    pub(super) fn together(&self, left: usize) -> usize {
        match (self.before_failed, self.alone) {
            (0, 0) => left,
            (0, _) => 1,
            (before, _) => before.min(left),
        }
    }

    /// A transaction of `records` was committed.
    pub(super) fn ended_together(&mut self, records: usize) {
        self.before_failed = self.before_failed.saturating_sub(records);
    }

    /// A record has ended in a transaction of its own; `was_committed` if it turned out to be committed before.
    pub(super) fn ended_alone(&mut self, was_committed: bool) {
        if std::mem::take(&mut self.is_unanswered) && !was_committed {
            // Nor is any other record of that transaction.
            self.alone = 1;
        }
        if self.before_failed > 0 {
            self.before_failed -= 1;
        } else {
            self.alone = self.alone.saturating_sub(1);
        }
    }

    /// A transaction of several records failed.
    pub(super) fn failed(&mut self, failure: TogetherFailure) {
        self.failures += 1;
        let more = 1_usize << (self.failures - 1).min(10);
        let was_shortened = std::mem::take(&mut self.before_failed) > 0;
        match failure {
            TogetherFailure::Record(index) if was_shortened => self.alone += index + more,
            TogetherFailure::Record(index) => (self.before_failed, self.alone) = (index, more),
            TogetherFailure::Transaction => self.alone += more,
            // Once: it may have been too large to be committed in time.
            TogetherFailure::Unanswered(records) if self.failures == 1 => {
                (self.alone, self.is_unanswered) = (records, true)
            }
            TogetherFailure::Commit(records) | TogetherFailure::Unanswered(records) => self.alone += records,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_alone(plan: &mut PartPlan, was_committed: bool) -> usize {
        let mut count = 0;
        while plan.together(1000) == 1 {
            plan.ended_alone(was_committed);
            count += 1;
        }
        count
    }

    #[test]
    fn all_run_together_until_one_fails_and_those_before_it_without_it() {
        let mut plan = PartPlan::default();
        assert_eq!(plan.together(100), 100);
        plan.failed(TogetherFailure::Record(40));
        assert_eq!(plan.together(100), 40);
        plan.ended_together(40);
        assert_eq!(plan.together(60), 1, "the one that failed");
        plan.ended_alone(false);
        assert_eq!(plan.together(59), 59);
    }

    #[test]
    fn a_transaction_that_ended_early_leaves_the_rest_before_the_failed_one_together() {
        let mut plan = PartPlan::default();
        plan.failed(TogetherFailure::Record(40));
        plan.ended_together(15);
        assert_eq!(plan.together(85), 25);
        plan.ended_together(25);
        assert_eq!(plan.together(60), 1);
    }

    #[test]
    fn one_record_before_the_failed_one_is_alone_as_well() {
        let mut plan = PartPlan::default();
        plan.failed(TogetherFailure::Record(1));
        for left in [3, 2] {
            assert_eq!(plan.together(left), 1);
            plan.ended_alone(false);
        }
        assert_eq!(plan.together(1), 1);
        plan.ended_alone(false);
    }

    #[test]
    fn when_all_fail_few_run_twice() {
        let (mut plan, mut left, mut failed) = (PartPlan::default(), 1000, 0);
        while left > 0 {
            if plan.together(left) > 1 {
                failed += 1;
                plan.failed(TogetherFailure::Record(0));
            } else {
                plan.ended_alone(false);
                left -= 1;
            }
        }
        assert!((9..=11).contains(&failed), "{failed}");
    }

    #[test]
    fn after_an_unanswered_commit_the_first_record_decides() {
        let mut plan = PartPlan::default();
        plan.failed(TogetherFailure::Unanswered(50));
        assert_eq!(plan.together(80), 1);
        plan.ended_alone(false);
        assert_eq!(plan.together(79), 79, "nothing was committed");
        plan.failed(TogetherFailure::Unanswered(79));
        assert_eq!(count_alone(&mut plan, false), 79, "no second try together");
        let mut plan = PartPlan::default();
        plan.failed(TogetherFailure::Unanswered(50));
        assert_eq!(count_alone(&mut plan, true), 50, "all were committed");
    }

    #[test]
    fn a_shortened_transaction_that_fails_and_one_that_cannot_be_committed_run_one_by_one() {
        let mut plan = PartPlan::default();
        plan.failed(TogetherFailure::Record(5));
        plan.failed(TogetherFailure::Record(2));
        // The two before the failed one, it and one more, as it is the second failure, and one for the first failure.
        assert_eq!(count_alone(&mut plan, false), 2 + 2 + 1);
        plan.failed(TogetherFailure::Commit(7));
        assert_eq!(count_alone(&mut plan, true), 7);
    }
}
