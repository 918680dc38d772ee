//! Distinguishes lasting authentication failures from temporary ones: [`AuthFailures`].

use std::time::{Duration, Instant};

/// A longer gap between failures ends a series. The client repeats an ongoing failure every 30 s.
const SERIES_GAP: Duration = Duration::from_secs(60);
/// A series of this length needs a person.
const LASTING: Duration = Duration::from_secs(90);

/// The current series of authentication failures of a client.
///
/// librdkafka reports a wrong password, a connection lost during authentication and a failed token request as the same error,
/// and retries all of them. Only a failure that lasts needs a person.
#[derive(Debug, Default)]
pub struct AuthFailures(Option<(Instant, Instant)>);

impl AuthFailures {
    /// Records a failure at `now`. Returns true if the series has lasted 90 s.
    pub fn record(&mut self, now: Instant) -> bool {
        let since = self.0.filter(|(_, last)| now - *last <= SERIES_GAP).map_or(now, |(since, _)| since);
        self.0 = Some((since, now));
        now - since >= LASTING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_failure_is_final_and_separate_failures_are_not() {
        let (mut failures, began) = (AuthFailures::default(), Instant::now());
        let mut at = |seconds| failures.record(began + Duration::from_secs(seconds));
        assert_eq!([0, 35, 70, 105].map(&mut at), [false, false, false, true]);
        assert_eq!([200, 235, 300, 335, 370].map(&mut at), [false; 5]);
    }
}
