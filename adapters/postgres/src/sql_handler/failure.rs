//! Classifies failed statements of handlers: [`classify`], [`Losses`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use onceward::adapter::StatementFailure;
use onceward::{HandlerError, Key};
use sqlx::postgres::{PgDatabaseError, PgErrorPosition};

/// The parameters, as error messages list them.
pub(super) const PARAMETERS: &str = "$1 is the payload as text (write $1::jsonb or $1::bytea for another type), $2 the key, \
     $3 the attempt (integer), $4 the fence (bigint)";

/// Connections lost by statements of one message until its own statement is suspected of ending them.
const LOSSES: u32 = 3;

/// Messages remembered at most whose statements lost a connection.
const LIMIT: usize = 1_024;

/// The class of a failed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureClass {
    /// Treated the same for every message.
    Classified(StatementFailure),
    /// The connection was lost: see [`Losses`].
    ConnectionLost,
}

/// Classifies the failure of a statement that was executed for a message.
pub(super) fn classify(cause: &sqlx::Error) -> FailureClass {
    use FailureClass::{Classified, ConnectionLost};
    let Some(error) = cause.as_database_error() else {
        return match cause {
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => ConnectionLost,
            _ => Classified(StatementFailure::Transient),
        };
    };
    match error.code().as_deref().unwrap_or_default() {
        // The last two: a prepared statement that is out of date.
        "40001" | "40P01" | "55P03" | "26000" | "42P05" => Classified(StatementFailure::Conflict),
        "0A000" if error.message().contains("cached plan") => Classified(StatementFailure::Conflict),
        // The server starts up, lacks connections or disk, or is a standby. Memory (53200) and limits (53400) may be
        // exceeded by this statement alone.
        "57P03" | "53300" | "53100" | "25006" => Classified(StatementFailure::Unavailable),
        // The server shuts down, another session's process crashed, or this session was terminated.
        "57P01" | "57P02" | "57P05" | "25P03" => ConnectionLost,
        code if code.starts_with("08") => ConnectionLost,
        // The row that a foreign key refers to may still be inserted.
        "23503" => Classified(StatementFailure::Transient),
        "P0001" => Classified(StatementFailure::Permanent),
        code if code.starts_with("22") || code.starts_with("23") => Classified(StatementFailure::Permanent),
        _ => Classified(StatementFailure::Transient),
    }
}

/// Counts the connections lost by statements of each message. Clones share the counts.
#[derive(Clone, Default)]
pub(super) struct Losses(Arc<Mutex<HashMap<Key, u32>>>);

impl Losses {
    /// Counts a lost connection: it uses no attempt, unless the message has lost [`LOSSES`] connections in a row.
    pub(super) fn count_loss(&self, key: Option<Key>) -> StatementFailure {
        let Some(key) = key else { return StatementFailure::Transient };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= LIMIT && !known.contains_key(&key) {
            known.clear();
        }
        let losses = known.entry(key).or_insert(0);
        *losses += 1;
        if *losses < LOSSES {
            return StatementFailure::Unavailable;
        }
        known.remove(&key);
        StatementFailure::Transient
    }

    /// Resets the count of a message: the server answered one of its statements.
    pub(super) fn reset(&self, key: Option<Key>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = key
            && !known.is_empty()
        {
            known.remove(&key);
        }
    }
}

/// The server's message, hint and SQLSTATE; without details, which may hold data, and without its source line.
pub(super) fn describe(cause: &sqlx::Error) -> String {
    describe_after(cause, 0)
}

/// As [`describe`], for a statement sent with `before` characters in front, which positions do not count.
pub(super) fn describe_after(cause: &sqlx::Error, before: usize) -> String {
    let Some(error) = cause.as_database_error() else {
        return HandlerError::from(cause.to_string()).text().to_owned();
    };
    let mut text = error.message().to_owned();
    if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
        if let Some(PgErrorPosition::Original(position)) = error.position() {
            text = format!("{text}, at character {} of the statement", position.saturating_sub(before));
        }
        if let Some(hint) = error.hint() {
            text = format!("{text}; {hint}");
        }
    }
    match error.code() {
        Some(code) if !code.is_empty() => format!("{text} (SQLSTATE {code})"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use StatementFailure::{Transient, Unavailable};

    #[test]
    fn a_message_whose_statements_lose_connections_again_and_again_is_charged() {
        let losses = Losses::default();
        let key = Key::from_bytes([1; 16]);
        let failures: Vec<_> = (0..4).map(|_| losses.count_loss(Some(key))).collect();
        assert_eq!(failures, [Unavailable, Unavailable, Transient, Unavailable]);
        losses.reset(Some(key));
        assert_eq!(losses.count_loss(Some(key)), Unavailable);
        assert_eq!(losses.count_loss(None), Transient);
    }
}
