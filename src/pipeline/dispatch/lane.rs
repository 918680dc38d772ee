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
    /// So many are claimed alone before the next sequence: one run takes as long as a sequence may.
    alone: u8,
}

/// How many deliveries of a lane are claimed alone after one whose handler took too long for a sequence. With two each time, every
/// delivery would be claimed, released and claimed again.
const ALONE: u8 = 32;

impl Default for Lane {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), length: FIRST_LENGTH, alone: 0 }
    }
}

impl Lane {
    /// How many deliveries the next sequence may have, of `most` that are allowed.
    pub(super) fn next_length(&mut self, most: usize) -> usize {
        if self.alone > 0 {
            self.alone -= 1;
            return 1;
        }
        self.length.min(most)
    }

    /// Adapts the length to a sequence whose first `count` handlers took `took`: so many that they end in time, since what is
    /// claimed and does not start is released. At least two, so that there is a sequence to be measured by, now and then.
    pub(super) fn adapt(&mut self, count: usize, took: Duration, most: usize) {
        let length = self.length.min(most);
        self.length = if took > LONGEST_RUN {
            self.alone = if count == 1 { ALONE } else { 0 };
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
