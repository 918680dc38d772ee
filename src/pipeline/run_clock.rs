//! Measures runs that end at once with few readings of the clock: [`RunClock`].

use std::cell::Cell;

/// Runs that take no longer on average share a reading of the clock, in nanoseconds: a reading takes 20 to 50.
const SHORT: u64 = 2_000;
/// At most so many share one.
const SHARING: u32 = 8;
/// After so many readings in a row that found short runs.
const STEADY: u32 = 64;

thread_local! {
    static OF_THREAD: Cell<RunClock> = const { Cell::new(RunClock::new(0)) };
}

/// The clock of the runs that follow each other on a thread. The first of a round begins when the round does, and each other one
/// when the one before it ends.
///
/// Runs that end at their first poll share a reading where such runs are all that there was, and were short, for a while: the last one
/// reads the clock, and those before it are given what runs took by the reading before. The last one has the rest, so that the sum is right
/// to within 14 µs, and a long run is seen, though perhaps as another one of the eight. Then, and after a run that waited, each run reads
/// the clock again for a while.
///
/// All times are nanoseconds since the pipeline began.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunClock {
    pipeline: u64,
    /// The latest reading.
    read_at: u64,
    /// What was given to the runs since.
    given: u64,
    sharing: u32,
    /// What a run takes, by the latest reading.
    typical: u64,
    /// The readings in a row that found short runs.
    steady: u32,
}

impl RunClock {
    const fn new(pipeline: u64) -> Self {
        Self { pipeline, read_at: 0, given: 0, sharing: 0, typical: 0, steady: 0 }
    }

    /// Uses the clock of this thread, for the pipeline of this number.
    #[inline]
    pub(super) fn with<T>(pipeline: u64, use_it: impl FnOnce(&mut Self) -> T) -> T {
        let mut clock = OF_THREAD.get();
        if clock.pipeline != pipeline {
            clock = Self::new(pipeline);
        }
        let result = use_it(&mut clock);
        OF_THREAD.set(clock);
        result
    }

    /// When a run of the round that began at `round` begins, if that is now.
    #[inline]
    pub(super) fn begin(&mut self, round: u64) -> u64 {
        if round > self.read_at {
            if self.sharing > 0 {
                self.steady = 0;
            }
            self.set(round);
        }
        self.read_at + self.given
    }

    /// How long a run took that ended at its first poll, if it need not read the clock.
    #[inline]
    pub(super) fn estimate(&mut self) -> Option<u64> {
        let shares = self.steady == STEADY && self.sharing + 1 < SHARING;
        shares.then(|| {
            self.sharing += 1;
            self.given += self.typical;
            self.typical
        })
    }

    /// How long a run took that began at `began` and ended at its first poll, where the clock says `now`.
    pub(super) fn read(&mut self, began: u64, now: u64) -> u64 {
        if began != self.read_at + self.given {
            // Another pipeline ran within it.
            return self.waited(began, now);
        }
        let together = now.saturating_sub(self.read_at);
        let rest = together.saturating_sub(self.given);
        self.typical = together / u64::from(self.sharing + 1);
        self.steady = if self.typical <= SHORT { STEADY.min(self.steady + 1) } else { 0 };
        self.set(now);
        rest
    }

    /// How long a run took that began at `began` and waited, where the clock says `now`.
    pub(super) fn waited(&mut self, began: u64, now: u64) -> u64 {
        self.steady = 0;
        self.set(now);
        now.saturating_sub(began)
    }

    fn set(&mut self, now: u64) {
        (self.read_at, self.given, self.sharing) = (now.max(self.read_at), 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs of so many nanoseconds, one after the other, behind those that make a clock steady: what each was given, and how often the
    /// clock was read.
    fn run(lengths: impl IntoIterator<Item = u64>) -> (Vec<u64>, usize) {
        let (mut clock, mut now, mut readings) = (RunClock::new(1), 50, 0);
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
        let mut clock = RunClock { steady: STEADY, ..RunClock::new(1) };
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
        let mut clock = RunClock { steady: STEADY, ..RunClock::new(1) };
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
