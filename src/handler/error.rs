//! Errors of a handler and what follows from them: [`HandlerError`] and its [`Verdict`].

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::error::{Error, ErrorKind, chain};

/// The return type of a handler without a result.
pub type Handled = Result<(), HandlerError>;

/// What shall happen after a failed run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Try again after the configured backoff, until the attempts are used up.
    Retry,
    /// Try again, not before this delay.
    RetryAfter(Duration),
    /// Trying again is useless: dead-letter it.
    Permanent,
    /// The run failed before it had any effect, for a reason that is not the message's: a service that refuses
    /// connections, a program that cannot be started, a database that is down. No attempt is used, unless the outcome is
    /// [unknown](HandlerError::outcome_unknown) again and again.
    Unavailable,
}

/// The failure of a handler run. `?` takes any error and means [`Verdict::Retry`]; [`ResultExt::permanent`] says
/// otherwise. It is deliberately no [`std::error::Error`] itself, so that `?` can take all of those, `anyhow` included.
///
/// ```
/// use onceward::{Handled, Message, ResultExt};
/// async fn charge(message: Message) -> Handled {
///     let order = std::str::from_utf8(message.payload()).permanent()?; // never going to be better
///     std::fs::read(order)?; // may work next time
///     Ok(())
/// }
/// ```
pub struct HandlerError(Box<RunFailure>);

/// Apart, so that the result of a run is a few words: it moves through each future around the run.
struct RunFailure {
    verdict: Verdict,
    text: String,
    outcome_unknown: bool,
    timed_out: bool,
    conflict: bool,
    not_before: Option<Duration>,
    /// The error that came through a bare `?`, until a verdict is chosen for it.
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl HandlerError {
    /// A failure with this text.
    pub fn new(verdict: Verdict, text: impl Into<String>) -> Self {
        Self(Box::new(RunFailure {
            verdict,
            text: text.into(),
            outcome_unknown: false,
            timed_out: false,
            conflict: false,
            not_before: None,
            cause: None,
        }))
    }

    /// Worth trying again.
    pub fn retry(text: impl Into<String>) -> Self {
        Self::new(Verdict::Retry, text)
    }

    /// Not worth trying again.
    pub fn permanent(text: impl Into<String>) -> Self {
        Self::new(Verdict::Permanent, text)
    }

    /// Worth trying again, not before `delay`.
    pub fn retry_after(delay: Duration, text: impl Into<String>) -> Self {
        Self::new(Verdict::RetryAfter(delay), text)
    }

    /// Not the message's fault, and nothing has happened: no attempt is used, the message waits until what the handler
    /// needs is available again.
    ///
    /// ```
    /// use onceward::{HandlerError, Verdict};
    /// let error = HandlerError::unavailable("the payment service refuses connections");
    /// assert_eq!(error.verdict(), Verdict::Unavailable);
    /// ```
    pub fn unavailable(text: impl Into<String>) -> Self {
        Self::new(Verdict::Unavailable, text)
    }

    /// The database rolled the run's transaction back because it met another one (a serialization failure, a deadlock, a
    /// lock timeout: SQLSTATE 40001, 40P01, 55P03). Nothing has happened and the message is not to blame: a
    /// transactional run is repeated at once, a few times, and then after a pause; no attempt is used. For another run it
    /// means [`Verdict::Unavailable`].
    ///
    /// `?` on an [`Error`] of the kind [`ErrorKind::Conflict`] means the same.
    pub fn conflict(text: impl Into<String>) -> Self {
        let mut error = Self::new(Verdict::Unavailable, text);
        error.0.conflict = true;
        error
    }

    /// Marks that the effect may have happened nevertheless (a request without an answer): another run is counted in
    /// `suspected_double_effects`.
    ///
    /// A [`Verdict::Unavailable`] whose outcome is unknown uses no attempt the first time, and none during an outage. But if
    /// runs of other messages have succeeded since, the handler is available: each further one of this message uses an
    /// attempt, or its effect might be repeated forever.
    #[must_use]
    pub fn outcome_unknown(mut self) -> Self {
        self.0.outcome_unknown = true;
        self
    }

    /// Marks that a time limit of the handler's own ended the run, which is counted in `timeouts` as is one that the
    /// pipeline's limit ends.
    #[must_use]
    pub fn timed_out(mut self) -> Self {
        self.0.timed_out = true;
        self
    }

    /// Sets the least time to wait before the next run, where the verdict itself does not: an unavailable service may
    /// know when it will be back. The message waits for as long, at most 365 d; the breaker's probes, which are for all
    /// messages, at most 60 s.
    ///
    /// ```
    /// use std::time::Duration;
    /// use onceward::HandlerError;
    /// let error = HandlerError::unavailable("maintenance").not_before(Duration::from_secs(60));
    /// assert_eq!(error.delay(), Some(Duration::from_secs(60)));
    /// ```
    #[must_use]
    pub fn not_before(mut self, delay: Duration) -> Self {
        self.0.not_before = Some(delay);
        self
    }

    /// How long at least to wait before the next run, if the handler has said so.
    pub fn delay(&self) -> Option<Duration> {
        match self.0.verdict {
            Verdict::RetryAfter(delay) => Some(delay),
            _ => self.0.not_before,
        }
    }

    /// What shall happen next.
    pub fn verdict(&self) -> Verdict {
        self.0.verdict
    }

    /// True if the effect may have happened nevertheless.
    pub fn is_outcome_unknown(&self) -> bool {
        self.0.outcome_unknown
    }

    /// True if a time limit of the handler's own ended the run; see [`timed_out`](Self::timed_out).
    pub fn is_timed_out(&self) -> bool {
        self.0.timed_out
    }

    /// True if the run's transaction was rolled back because it met another one; see [`conflict`](Self::conflict).
    pub fn is_conflict(&self) -> bool {
        self.0.conflict
    }

    /// What it means according to `of`, which is asked about each error that came through a bare `?`, outermost first: a
    /// [`Conflict`](ErrorKind::Conflict) or [`Unavailable`](ErrorKind::Unavailable) is not the message's fault. A verdict that
    /// the handler has given stays.
    pub(crate) fn judged(mut self, of: impl Fn(&(dyn StdError + 'static)) -> Option<ErrorKind>) -> Self {
        let mut cause: Option<&(dyn StdError + 'static)> = self.0.cause.as_deref().map(|cause| cause as _);
        while let Some(next) = cause {
            let Some(kind) = of(next) else {
                cause = next.source();
                continue;
            };
            if matches!(kind, ErrorKind::Conflict | ErrorKind::Unavailable) {
                self.0.verdict = Verdict::Unavailable;
                self.0.conflict |= kind == ErrorKind::Conflict;
            }
            break;
        }
        self
    }

    /// The text, causes included.
    pub fn text(&self) -> &str {
        &self.0.text
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.verdict, self.0.text)
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let error: Box<dyn std::error::Error + Send + Sync> = error.into();
        let text = chain(&*error);
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
        while let Some(next) = cause {
            if next.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::Conflict) {
                return Self::conflict(text);
            }
            cause = next.source();
        }
        let mut failure = Self::retry(text);
        failure.0.cause = Some(error);
        failure
    }
}

/// Chooses the verdict of a failure while it passes through `?`.
pub trait ResultExt<T> {
    /// Trying again is useless.
    ///
    /// # Errors
    /// The failure, as [`Verdict::Permanent`].
    fn permanent(self) -> Result<T, HandlerError>;

    /// Try again, not before `delay`.
    ///
    /// # Errors
    /// The failure, as [`Verdict::RetryAfter`].
    fn retry_after(self, delay: Duration) -> Result<T, HandlerError>;

    /// Nothing has happened and the message is not to blame: no attempt is used.
    ///
    /// # Errors
    /// The failure, as [`Verdict::Unavailable`].
    fn unavailable(self) -> Result<T, HandlerError>;
}

impl<T, E: Into<HandlerError>> ResultExt<T> for Result<T, E> {
    fn permanent(self) -> Result<T, HandlerError> {
        self.map_err(|error| decided(error.into(), Verdict::Permanent))
    }

    fn retry_after(self, delay: Duration) -> Result<T, HandlerError> {
        self.map_err(|error| decided(error.into(), Verdict::RetryAfter(delay)))
    }

    fn unavailable(self) -> Result<T, HandlerError> {
        self.map_err(|error| decided(error.into(), Verdict::Unavailable))
    }
}

/// The same failure with the verdict that the handler has chosen.
fn decided(mut error: HandlerError, verdict: Verdict) -> HandlerError {
    error.0.verdict = verdict;
    error.0.conflict &= verdict == Verdict::Unavailable;
    error.0.cause = None;
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Database(ErrorKind);

    impl fmt::Display for Database {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "the database says {:?}", self.0)
        }
    }

    impl StdError for Database {}

    fn of_database(error: &(dyn StdError + 'static)) -> Option<ErrorKind> {
        error.downcast_ref::<Database>().map(|error| error.0)
    }

    #[test]
    fn a_store_says_what_a_bare_error_of_its_database_means_and_a_verdict_that_was_given_stays() {
        let judged = |error: HandlerError| {
            let judged = error.judged(of_database);
            (judged.verdict(), judged.is_conflict())
        };
        for (kind, means) in [
            (ErrorKind::Conflict, (Verdict::Unavailable, true)),
            (ErrorKind::Unavailable, (Verdict::Unavailable, false)),
            (ErrorKind::Internal, (Verdict::Retry, false)),
        ] {
            assert_eq!(judged(Database(kind).into()), means, "{kind:?}");
            assert_eq!(judged(anyhow::Error::new(Database(kind)).context("pay").into()), means, "{kind:?}");
        }
        assert_eq!(judged(std::io::Error::other("no file").into()), (Verdict::Retry, false));
        let failed = || Err::<(), _>(Database(ErrorKind::Conflict));
        let delay = Duration::from_secs(1);
        assert_eq!(judged(failed().permanent().unwrap_err()), (Verdict::Permanent, false));
        assert_eq!(judged(failed().retry_after(delay).unwrap_err()), (Verdict::RetryAfter(delay), false));
        let text = "it came of a conflict";
        assert_eq!(judged(HandlerError::retry(text)), (Verdict::Retry, false));
    }

    #[test]
    fn a_conflict_is_found_behind_the_errors_that_wrap_it() {
        let conflict = Error::new(ErrorKind::Conflict, "commit a transaction", "deadlock detected");
        let wrapped: HandlerError = anyhow::Error::new(conflict).context("pay").into();
        assert!(wrapped.is_conflict());
        assert_eq!(wrapped.verdict(), Verdict::Unavailable);
        let other: HandlerError = Error::new(ErrorKind::Timeout, "commit a transaction", "no answer").into();
        assert!(!other.is_conflict());
        assert_eq!(other.verdict(), Verdict::Retry);
    }
}
