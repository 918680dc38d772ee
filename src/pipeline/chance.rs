//! Random numbers of a pipeline: owner tokens and jitter, reproducible from a seed: [`Chance`].

use std::time::Duration;

use crate::retry::Backoff;
use crate::store::{Entropy, OwnerToken};

/// Owner tokens and jitter.
pub(crate) struct Chance {
    entropy: Entropy,
    rng: fastrand::Rng,
}

impl Chance {
    pub(crate) fn new(seed: Option<u64>) -> Self {
        match seed {
            Some(seed) => Self { entropy: Entropy::seeded(seed), rng: fastrand::Rng::with_seed(seed) },
            None => Self { entropy: Entropy::system(), rng: fastrand::Rng::new() },
        }
    }
}

impl Chance {
    /// A new owner token.
    pub(crate) fn token(&mut self) -> OwnerToken {
        self.entropy.token()
    }

    /// The backoff before the next try.
    pub(crate) fn backoff(&mut self, backoff: &Backoff, failures: u32, previous: Duration) -> Duration {
        backoff.delay(failures, previous, &mut self.rng)
    }

    /// Between half of `base · 2^tries` and all of it, at most `longest`.
    pub(crate) fn pause(&mut self, base: Duration, tries: u32, longest: Duration) -> Duration {
        let full = base.saturating_mul(1 << tries.min(16)).min(longest);
        full.mul_f64(0.5 + self.rng.f64() / 2.0)
    }
}
