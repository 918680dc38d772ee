//! What a user thinks of a failed run: [`HandlerError`] and its [`Verdict`].

use std::fmt;
use std::time::Duration;

use crate::error::chain;

/// What a handler without a result returns.
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
    /// connections, a program that cannot be started, a database that is down. No attempt is used.
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
pub struct HandlerError {
    verdict: Verdict,
    text: String,
    outcome_unknown: bool,
    not_before: Option<Duration>,
}

impl HandlerError {
    /// A failure with this text.
    pub fn new(verdict: Verdict, text: impl Into<String>) -> Self {
        Self { verdict, text: text.into(), outcome_unknown: false, not_before: None }
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

    /// Says that the effect may have happened all the same (a request without an answer): another run is counted in
    /// `suspected_double_effects`.
    #[must_use]
    pub fn outcome_unknown(mut self) -> Self {
        self.outcome_unknown = true;
        self
    }

    /// Says how long at least to wait before the next run, where the verdict itself does not: what is unavailable may know
    /// when it will be back.
    ///
    /// ```
    /// use std::time::Duration;
    /// use onceward::HandlerError;
    /// let error = HandlerError::unavailable("maintenance").not_before(Duration::from_secs(60));
    /// assert_eq!(error.delay(), Some(Duration::from_secs(60)));
    /// ```
    #[must_use]
    pub fn not_before(mut self, delay: Duration) -> Self {
        self.not_before = Some(delay);
        self
    }

    /// How long at least to wait before the next run, if the handler has said so.
    pub fn delay(&self) -> Option<Duration> {
        match self.verdict {
            Verdict::RetryAfter(delay) => Some(delay),
            _ => self.not_before,
        }
    }

    /// What shall happen next.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// True if the effect may have happened all the same.
    pub fn is_outcome_unknown(&self) -> bool {
        self.outcome_unknown
    }

    /// The text, causes included.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.verdict, self.text)
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let error: Box<dyn std::error::Error + Send + Sync> = error.into();
        Self::retry(chain(&*error))
    }
}

/// Says what a failure means while it passes through `?`.
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
        self.map_err(|error| HandlerError { verdict: Verdict::Permanent, ..error.into() })
    }

    fn retry_after(self, delay: Duration) -> Result<T, HandlerError> {
        self.map_err(|error| HandlerError { verdict: Verdict::RetryAfter(delay), ..error.into() })
    }

    fn unavailable(self) -> Result<T, HandlerError> {
        self.map_err(|error| HandlerError { verdict: Verdict::Unavailable, ..error.into() })
    }
}
