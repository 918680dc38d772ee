//! A lane in which a delivery is under way: what waits behind it, and how many of it are claimed together.

use std::collections::VecDeque;
use std::time::Duration;

use crate::pipeline::sequence::LONGEST_RUN;
use crate::pipeline::work::Work;

/// The length of a lane's first sequence.
const FIRST_LENGTH: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) waiting: VecDeque<Work>,
    /// How many deliveries the next sequence may have.
    length: usize,
}

impl Default for Lane {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), length: FIRST_LENGTH }
    }
}

impl Lane {
    /// How many deliveries the next sequence may have, of `most` that are allowed.
    pub(super) fn length(&self, most: usize) -> usize {
        self.length.min(most)
    }

    /// Adapts the length to a sequence whose first `count` handlers took `took`: so many that they end in time, since what is
    /// claimed and does not start is released. At least two, so that there is a sequence to be measured by.
    pub(super) fn adapt(&mut self, count: usize, took: Duration, most: usize) {
        let length = self.length(most);
        self.length = if took > LONGEST_RUN {
            let share = LONGEST_RUN.as_secs_f64() / took.as_secs_f64();
            // Rounded down; the count of handlers is far below where a float loses digits.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let in_time = (count as f64 * share) as usize;
            in_time.clamp(2, length.max(2))
        } else if count >= length && took < LONGEST_RUN / 2 {
            length.saturating_mul(2).min(most)
        } else {
            return;
        };
    }
}
