//! The error of stores, brokers and configurations: [`Error`].
//!
//! What a user thinks of a failed run of their own handler is another question with another type:
//! [`HandlerError`](crate::HandlerError).

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

type Source = Arc<dyn StdError + Send + Sync + 'static>;

/// The kinds of [`Error`]. Each kind has one answer to "is it worth trying again?".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The other side cannot be reached or refuses for now: connection lost, loading, read-only, out of memory.
    Unavailable,
    /// No reply in time: the write may or may not have happened. Repeat it with the same owner token.
    Timeout,
    /// Too many requests; the other side asks to slow down.
    Throttled,
    /// The other side certainly did not apply the call because it met another transaction (serialization failure,
    /// deadlock, lock timeout): everything is rolled back. Retry at once; no outcome has to be determined first.
    ///
    /// Only for failures that are certain: if the reply to a commit was lost, the kind is [`Timeout`](Self::Timeout) or
    /// [`Unavailable`](Self::Unavailable).
    Conflict,
    /// The rights are missing or the credentials are wrong.
    Denied,
    /// Stored or received data cannot be read (a foreign format version, a damaged value).
    Corrupt,
    /// A message is larger than the other side accepts. Repeating it unchanged cannot succeed.
    TooLarge,
    /// Values in the configuration contradict each other or the other side's set-up.
    Config,
    /// The part does not offer this operation.
    Unsupported,
    /// A fault of the program itself.
    Internal,
    /// Anything an adapter could not classify.
    Unknown,
}

/// An error of a store, a broker or a configuration.
///
/// It is cheap to clone: every item of a batch that failed as a whole gets the same error.
///
/// `Display` prints one sentence, "while doing X: what was wrong"; the chain of causes is
/// [`source`](StdError::source)'s.
///
/// ```
/// use onceward::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::Unavailable, "claim 3 keys", "connection refused");
/// assert_eq!(error.to_string(), "cannot claim 3 keys: connection refused");
/// assert!(error.is_retryable());
/// ```
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    operation: Cow<'static, str>,
    context: Cow<'static, str>,
    source: Option<Source>,
}

impl Error {
    /// An error of `kind` that happened while attempting `operation`; `context` describes the problem and the fix.
    pub fn new(
        kind: ErrorKind,
        operation: impl Into<Cow<'static, str>>,
        context: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { kind, operation: operation.into(), context: context.into(), source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operation that was attempted.
    pub fn operation(&self) -> &str {
        &self.operation
    }

    /// True if the same call may succeed later. Unknown errors are retryable: attempts bound them.
    pub fn is_retryable(&self) -> bool {
        match self.kind {
            ErrorKind::Unavailable
            | ErrorKind::Timeout
            | ErrorKind::Throttled
            | ErrorKind::Conflict
            | ErrorKind::Unknown => true,
            ErrorKind::Denied
            | ErrorKind::Corrupt
            | ErrorKind::TooLarge
            | ErrorKind::Config
            | ErrorKind::Unsupported
            | ErrorKind::Internal => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.operation, self.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)?;
        let mut cause: Option<&dyn StdError> = self.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// `error` and its causes on one line, for logs and dead letters.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
