//! The delays for which delay queues exist.
//!
//! A queue has one delay, since only the message at its head can expire. The delays run from 100 ms to 43 h, each at most
//! half as long again as the one before.

use std::time::Duration;

/// The longest suffix of a delay queue's name, in bytes.
pub(crate) const SUFFIX_BYTES: usize = ".wait.200000000ms".len();

const SHORTEST_MS: u64 = 100;
const STEPS: u32 = 42;

/// All delays in milliseconds, from the shortest to the longest.
pub(super) fn all_delays_ms() -> impl DoubleEndedIterator<Item = u64> + Clone {
    (0..STEPS).map(|step| {
        let octave = SHORTEST_MS << (step / 2);
        if step % 2 == 0 { octave } else { octave + octave / 2 }
    })
}

/// Rounds `after` up to the next delay, in milliseconds; at most to the longest delay.
pub(super) fn round_up_ms(after: Duration) -> u64 {
    let wanted = u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    all_delays_ms().find(|delay| *delay >= wanted).or(all_delays_ms().next_back()).unwrap_or(SHORTEST_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_never_shorter_and_at_most_half_as_long_again() {
        for wanted in [1, 99, 100, 101, 150, 151, 200, 1234, 60_000, 3_600_000, 100_000_000_u64] {
            let delay = round_up_ms(Duration::from_millis(wanted));
            assert!(delay >= wanted && delay <= (wanted * 3 / 2).max(100), "{wanted}: {delay}");
        }
        assert_eq!(round_up_ms(Duration::ZERO), 100);
        assert_eq!(round_up_ms(Duration::from_nanos(100_000_001)), 150);
        let longest = round_up_ms(Duration::MAX);
        assert!(longest > 43 * 3_600_000 && format!(".wait.{longest}ms").len() <= SUFFIX_BYTES);
    }
}
