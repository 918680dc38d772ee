//! Rate limit for repeated log lines: [`RateLimited`].

use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// Lets the first of each kind of log line through and then one per period, with the number of lines left out.
///
/// A line belongs to the kind that its text gives, for example the text of an error. At most eight kinds are
/// distinguished at any moment; the rest share one, so that texts with a message's own numbers in them cannot flood the
/// log either.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use onceward::telemetry::RateLimited;
/// let lines = RateLimited::default();
/// assert_eq!(lines.allow("connection refused"), Some(0));
/// assert_eq!(lines.allow("connection refused"), None);
/// assert_eq!(lines.allow("connection reset"), Some(0));
/// # }
/// ```
#[derive(Debug)]
pub struct RateLimited {
    period: Duration,
    kinds: Mutex<HashMap<String, Kind>>,
}

#[derive(Debug)]
struct Kind {
    logged_at: Instant,
    left_out: u64,
}

const MOST_KINDS: usize = 8;

impl Default for RateLimited {
    /// One line of a kind per 30 s.
    fn default() -> Self {
        Self::per(Duration::from_secs(30))
    }
}

impl RateLimited {
    /// One line of a kind per `period`.
    pub fn per(period: Duration) -> Self {
        Self { period, kinds: Mutex::default() }
    }

    /// `Some` if a line of this kind is to be logged now, with the number of lines of its kind that were left out since the
    /// last one; `None` if it is to be left out.
    pub fn allow(&self, kind: &str) -> Option<u64> {
        let now = Instant::now();
        let mut kinds = self.kinds.lock();
        if !kinds.contains_key(kind) && kinds.len() >= MOST_KINDS {
            kinds.retain(|_, kind| now < kind.logged_at + self.period);
        }
        let kind = if kinds.contains_key(kind) || kinds.len() < MOST_KINDS { kind } else { "" };
        match kinds.get_mut(kind) {
            Some(known) if now < known.logged_at + self.period => {
                known.left_out += 1;
                None
            }
            Some(known) => {
                known.logged_at = now;
                Some(std::mem::take(&mut known.left_out))
            }
            None => {
                kinds.insert(kind.to_owned(), Kind { logged_at: now, left_out: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_line_of_a_kind_is_logged_and_then_one_per_period_with_the_number_left_out() {
        let lines = RateLimited::per(Duration::from_secs(30));
        assert_eq!(lines.allow("a"), Some(0));
        for _ in 0..100 {
            assert_eq!(lines.allow("a"), None);
        }
        assert_eq!(lines.allow("b"), Some(0));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!((lines.allow("a"), lines.allow("a"), lines.allow("b")), (Some(100), None, Some(0)));
    }

    #[tokio::test(start_paused = true)]
    async fn texts_that_all_differ_are_rare_as_well() {
        let lines = RateLimited::per(Duration::from_secs(30));
        let logged = (0..1000).filter(|number| lines.allow(&number.to_string()).is_some()).count();
        assert_eq!(logged, MOST_KINDS + 1);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(lines.allow("new"), Some(0));
    }
}
