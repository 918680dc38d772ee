//! SQL statements as handlers: the values a message binds, and how a failure is classified.
//!
//! The stores with transactions (Postgres, SQLite) execute one statement per message in the transaction of its
//! completion. What they share is here: the four parameters, and the outcomes of a statement.

use super::HandlerError;
use crate::error::{Error, ErrorKind};

/// A value of a message that a handler's SQL statement binds as `$1` to `$4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatementParameter {
    /// `$1`: the payload.
    Payload,
    /// `$2`: the idempotency key; NULL for a message without one.
    Key,
    /// `$3`: the attempt, from 1.
    Attempt,
    /// `$4`: the fence of the claim.
    Fence,
}

impl StatementParameter {
    /// All parameters, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Payload, Self::Key, Self::Attempt, Self::Fence];

    /// The parameter `$number`; `None` for a number that binds nothing.
    pub fn from_number(number: usize) -> Option<Self> {
        Self::ALL.get(number.checked_sub(1)?).copied()
    }

    /// The number behind the `$`.
    pub const fn number(self) -> usize {
        match self {
            Self::Payload => 1,
            Self::Key => 2,
            Self::Attempt => 3,
            Self::Fence => 4,
        }
    }

    /// The name, for messages to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Payload => "payload",
            Self::Key => "key",
            Self::Attempt => "attempt",
            Self::Fence => "fence",
        }
    }
}

/// How a failed statement of a handler is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementFailure {
    /// The transaction was rolled back in favour of another one. The run is repeated at once; no attempt is used.
    Conflict,
    /// The database is unavailable for every message. No attempt is used.
    Unavailable,
    /// The data of the message can never satisfy the statement. The message is dead-lettered.
    Permanent,
    /// Any other failure: the message is retried, and an attempt is used.
    Transient,
}

impl StatementFailure {
    /// The error that the handler returns, with `text` as its description.
    pub fn into_error(self, text: impl Into<String>) -> HandlerError {
        match self {
            Self::Conflict => HandlerError::conflict(text),
            Self::Unavailable => HandlerError::unavailable(text),
            Self::Permanent => HandlerError::permanent(text),
            Self::Transient => HandlerError::retry(text),
        }
    }

    /// The configuration error of a statement that cannot be used as a handler, for the reason `what`.
    pub fn invalid_statement(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::new(ErrorKind::Config, "use the SQL handler's `statement`", what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::Verdict;

    #[test]
    fn each_parameter_has_the_number_it_is_found_by() {
        for parameter in StatementParameter::ALL {
            assert_eq!(StatementParameter::from_number(parameter.number()), Some(parameter));
        }
        for number in [0, 5, usize::MAX] {
            assert_eq!(StatementParameter::from_number(number), None, "{number}");
        }
    }

    #[test]
    fn only_a_transient_failure_uses_an_attempt_and_only_a_permanent_one_is_dead_lettered() {
        for (failure, verdict, is_conflict) in [
            (StatementFailure::Conflict, Verdict::Unavailable, true),
            (StatementFailure::Unavailable, Verdict::Unavailable, false),
            (StatementFailure::Permanent, Verdict::Permanent, false),
            (StatementFailure::Transient, Verdict::Retry, false),
        ] {
            let error = failure.into_error("why");
            assert_eq!((error.verdict(), error.is_conflict(), error.text()), (verdict, is_conflict, "why"));
        }
    }
}
