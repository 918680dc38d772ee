//! Tells credentials that are refused for good from trouble of a moment: [`Refused`].

use std::time::{Duration, Instant};

/// The client repeats what goes on every 30 s.
const OVER: Duration = Duration::from_secs(60);
const FOR_GOOD: Duration = Duration::from_secs(90);

/// Since when a member's credentials are refused.
///
/// librdkafka tells in the same way of a wrong password, of a connection that was lost while it said who it is, and of a token
/// that could not be had this time. It tries all of them again, and only what goes on needs a person.
#[derive(Debug, Default)]
pub struct Refused(Option<(Instant, Instant)>);

impl Refused {
    /// Notes that it was told `now`. True if it goes on for so long that it will not end by itself.
    pub fn goes_on(&mut self, now: Instant) -> bool {
        let since = self.0.filter(|(_, last)| now - *last <= OVER).map_or(now, |(since, _)| since);
        self.0 = Some((since, now));
        now - since >= FOR_GOOD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_for_good_and_what_comes_again_later_is_not() {
        let (mut refused, began) = (Refused::default(), Instant::now());
        let mut at = |seconds| refused.goes_on(began + Duration::from_secs(seconds));
        assert_eq!([0, 35, 70, 105].map(&mut at), [false, false, false, true]);
        assert_eq!([200, 235, 300, 335, 370].map(&mut at), [false; 5]);
    }
}
