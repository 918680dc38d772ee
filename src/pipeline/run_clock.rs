//! Measures runs that end at once with few readings of the clock: [`RunClock`].

use std::cell::Cell;

/// Runs whose average is at most this many nanoseconds share a reading of the clock, which takes 20 to 50.
const SHORT: u64 = 2_000;
/// At most so many share one.
const SHARING: u32 = 8;
/// After so many readings in a row that found short runs.
const STEADY: u32 = 64;

thread_local! {
    static OF_THREAD: RunClock = const { RunClock::new(0) };
}

/// The clock of the runs that follow each other on a thread. The first of a round begins when the round does, and each other one
/// when the one before it ends.
///
/// Runs that succeed at their first poll share a reading where such runs are all that there was, and were short, for a while: the last one
/// reads the clock, and each one before it is given the average of the reading before. The last one has the rest, so that the sum is right
/// to within 14 µs for each reading, and a long run is seen, though perhaps as another one of the eight. Then, and after a run that
/// waited, each run reads the clock again for a while. Where the last one does not run after all, what those before it took
/// beyond the average is lost.
///
/// All times are nanoseconds since the pipeline began.
#[derive(Debug)]
pub(super) struct RunClock {
    pipeline: Cell<u64>,
    /// The latest reading.
    read_at: Cell<u64>,
    /// What was given to the runs since.
    given: Cell<u64>,
    sharing: Cell<u32>,
    /// What a run takes, by the latest reading.
    typical: Cell<u64>,
    /// The readings in a row that found short runs.
    steady: Cell<u32>,
}

impl RunClock {
    const fn new(pipeline: u64) -> Self {
        Self {
            pipeline: Cell::new(pipeline),
            read_at: Cell::new(0),
            given: Cell::new(0),
            sharing: Cell::new(0),
            typical: Cell::new(0),
            steady: Cell::new(0),
        }
    }

    /// Uses the clock of this thread, for the pipeline of this number.
    #[inline]
    pub(super) fn with<T>(pipeline: u64, use_it: impl FnOnce(&Self) -> T) -> T {
        OF_THREAD.with(|clock| {
            if clock.pipeline.get() != pipeline {
                clock.become_that_of(pipeline);
            }
            use_it(clock)
        })
    }

    #[cold]
    fn become_that_of(&self, pipeline: u64) {
        self.pipeline.set(pipeline);
        self.read_at.set(0);
        self.steady.set(0);
        self.share_nothing();
    }

    /// When a run of the round that began at `round` begins, if that is now.
    #[inline]
    pub(super) fn begin(&self, round: u64) -> u64 {
        if round > self.read_at.get() {
            if self.sharing.get() > 0 {
                self.steady.set(0);
            }
            self.set(round);
        }
        self.read_at.get() + self.given.get()
    }

    /// How long a run took that ended at its first poll, if it need not read the clock.
    #[inline]
    pub(super) fn estimate(&self) -> Option<u64> {
        let (sharing, typical) = (self.sharing.get() + 1, self.typical.get());
        let shares = self.steady.get() == STEADY && sharing < SHARING;
        shares.then(|| {
            self.sharing.set(sharing);
            self.given.set(self.given.get() + typical);
            typical
        })
    }

    /// How long a run took that began at `began` and ended at its first poll, where the clock says `now`.
    #[inline]
    pub(super) fn read(&self, began: u64, now: u64) -> u64 {
        let (read_at, given, sharing) = (self.read_at.get(), self.given.get(), self.sharing.get());
        if began != read_at + given {
            // Another pipeline ran within it.
            return self.waited(began, now);
        }
        let together = now.saturating_sub(read_at);
        let typical = if sharing == 0 { together } else { together / u64::from(sharing + 1) };
        self.typical.set(typical);
        self.steady.set(if typical <= SHORT { STEADY.min(self.steady.get() + 1) } else { 0 });
        self.set(now);
        together.saturating_sub(given)
    }

    /// How long a run took that began at `began` and waited, where the clock says `now`.
    pub(super) fn waited(&self, began: u64, now: u64) -> u64 {
        self.steady.set(0);
        self.set(now);
        now.saturating_sub(began)
    }

    #[inline]
    fn set(&self, now: u64) {
        self.read_at.set(now.max(self.read_at.get()));
        self.share_nothing();
    }

    #[inline]
    fn share_nothing(&self) {
        self.given.set(0);
        self.sharing.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs of so many nanoseconds, one after the other, behind those that make a clock steady: what each was given, and how often the
    /// clock was read.
    fn run(lengths: impl IntoIterator<Item = u64>) -> (Vec<u64>, usize) {
        let (clock, mut now, mut readings) = (RunClock::new(1), 50, 0);
        let mut one = |length| {
            let began = clock.begin(50);
            now += length;
            clock.estimate().unwrap_or_else(|| {
                readings += 1;
                clock.read(began, now)
            })
        };
        for _ in 0..STEADY {
            assert_eq!(one(500), 500);
        }
        let given = lengths.into_iter().map(one).collect();
        (given, readings - STEADY as usize)
    }

    #[test]
    fn short_runs_share_a_reading_and_their_sum_is_exact() {
        let lengths: Vec<_> = (0..80).map(|number| 300 + number % 7).collect();
        let (given, readings) = run(lengths.iter().copied());
        assert_eq!(
            (given[8..].iter().sum(), readings),
            (lengths[8..].iter().sum::<u64>(), 10),
            "one for eight"
        );
        assert!(given[8..].iter().all(|length| (250..350).contains(length)), "{given:?}");
    }

    #[test]
    fn a_long_run_among_short_ones_is_given_once_and_the_next_ones_read_the_clock() {
        let mut lengths = vec![500; 8 + STEADY as usize + 8];
        lengths[3] = 10_000_000;
        let (given, readings) = run(lengths.iter().copied());
        assert_eq!(given.iter().filter(|length| **length == 10_000_000).count(), 1, "{given:?}");
        assert_eq!(given.iter().filter(|length| **length == 500).count(), lengths.len() - 1, "{given:?}");
        assert_eq!(
            readings,
            1 + STEADY as usize + 1,
            "one for eight with the long one, then each, then eight again"
        );
    }

    #[test]
    fn runs_that_become_faster_are_given_too_much_by_few_microseconds_once() {
        let lengths: Vec<_> = [1_900; 8].into_iter().chain([200; 16]).collect();
        let (given, _) = run(lengths.iter().copied());
        let excess = given[8..].iter().sum::<u64>() - lengths[8..].iter().sum::<u64>();
        assert!(excess <= 14_000, "{given:?}");
        assert_eq!(given[16..], [200; 8]);
    }

    #[test]
    fn long_runs_read_the_clock_each_time() {
        let lengths = vec![3_000; 100];
        assert_eq!(run(lengths.iter().copied()).1, 1 + 92, "the first seven were taken for short ones");
    }

    #[test]
    fn a_round_begins_at_its_own_time_and_other_runs_at_the_end_of_the_one_before() {
        let clock = RunClock { steady: Cell::new(STEADY), ..RunClock::new(1) };
        assert_eq!(clock.begin(1_000), 1_000);
        assert_eq!(clock.read(1_000, 1_400), 400);
        assert_eq!(clock.begin(1_000), 1_400, "behind another");
        assert_eq!(clock.estimate(), Some(400));
        assert_eq!(clock.begin(1_000), 1_800);
        assert_eq!(clock.begin(9_000), 9_000, "another round");
        assert_eq!(clock.estimate(), None, "how long the latest run took is not known");
        assert_eq!(clock.read(9_000, 9_100), 100, "nothing of the round before");
    }

    #[test]
    fn after_a_run_that_waited_each_run_reads_the_clock() {
        let clock = RunClock { steady: Cell::new(STEADY), ..RunClock::new(1) };
        let began = clock.begin(1_000);
        assert_eq!(clock.waited(began, 5_000), 4_000);
        assert_eq!((clock.begin(1_000), clock.estimate()), (5_000, None));
    }

    #[test]
    fn each_pipeline_has_a_clock_of_its_own_also_within_a_run_of_another() {
        let begin = |pipeline, round| RunClock::with(pipeline, |clock| clock.begin(round));
        assert_eq!((begin(101, 5_000), begin(101, 10)), (5_000, 5_000));
        assert_eq!(begin(102, 10), 10, "its times count from another moment");
        assert_eq!(
            RunClock::with(101, |clock| clock.read(5_000, 5_300)),
            300,
            "not since its pipeline began"
        );
    }
}
