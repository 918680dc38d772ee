//! Seeded chance: the seed is printed, so that a failing test can be run with it again.

use std::ops::Range;
use std::time::Duration;

/// Chance from one seed: that in `ONCEWARD_TEST_SEED`, or a fresh one. When the operating system gets round to things is
/// chance as well, and no seed repeats it; the same seed makes the same choices at about the same moments.
#[derive(Debug)]
pub struct Chance {
    rng: fastrand::Rng,
}

impl Chance {
    /// Takes the seed and prints it; test runners show it with the failure.
    #[allow(clippy::print_stdout)]
    pub fn new() -> Self {
        let given = std::env::var("ONCEWARD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| fastrand::u64(..));
        println!("repeat with ONCEWARD_TEST_SEED={seed}");
        Self { rng: fastrand::Rng::with_seed(seed) }
    }

    /// A number from `range`.
    pub fn number(&mut self, range: Range<usize>) -> usize {
        self.rng.usize(range)
    }

    /// A time from a range in milliseconds.
    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.rng.u64(range.start * 1000..range.end * 1000))
    }

    /// Puts `items` in another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        self.rng.shuffle(items);
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}

/// How often to kill: `ONCEWARD_TEST_KILLS`, or `usual`.
pub fn kills(usual: usize) -> usize {
    std::env::var("ONCEWARD_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(usual)
}

/// How much of something: `slow` where `SLOW` asks for the long way, else `usual`.
pub fn size<T>(usual: T, slow: T) -> T {
    if std::env::var_os("SLOW").is_some() { slow } else { usual }
}
