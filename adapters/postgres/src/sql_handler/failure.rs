//! What a failed statement in Postgres means for its message: [`Failure`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use onceward::{HandlerError, Key, Verdict};
use sqlx::postgres::{PgDatabaseError, PgErrorPosition};

/// The parameters, for people.
pub(super) const PARAMETERS: &str = "$1 is the payload as text (write $1::jsonb or $1::bytea for another type), $2 the key, \
     $3 the attempt (integer), $4 the fence (bigint)";

/// After so many connections lost during statements of one message, its own statement may be what ends them.
const LOSSES: u32 = 3;

/// How many messages are remembered whose statements lost a connection.
const LIMIT: usize = 1_024;

/// What a failed statement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It was rolled back in favour of another transaction, or its preparation is out of date: worth repeating at once.
    Conflict,
    /// The database is away, or refuses everything: not the message's fault.
    Unavailable,
    /// The connection is gone.
    Lost,
    /// The data can never satisfy it.
    Permanent,
    /// Anything else.
    Other,
}

impl Failure {
    /// Of a statement that was executed for a message.
    pub(super) fn of(cause: &sqlx::Error) -> Self {
        let Some(error) = cause.as_database_error() else {
            return match cause {
                sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => Self::Lost,
                _ => Self::Other,
            };
        };
        match error.code().as_deref().unwrap_or_default() {
            "40001" | "40P01" | "55P03" | "26000" | "42P05" => Self::Conflict,
            "0A000" if error.message().contains("cached plan") => Self::Conflict,
            // The server starts up, lacks connections or disk, or is a standby now. Memory (53200) and limits
            // (53400) may be what this statement alone exceeds.
            "57P03" | "53300" | "53100" | "25006" => Self::Unavailable,
            // The server goes down, another session's process has died, or this one was ended.
            "57P01" | "57P02" | "57P05" | "25P03" => Self::Lost,
            code if code.starts_with("08") => Self::Lost,
            // A row that a foreign key asks for may come yet.
            "23503" => Self::Other,
            "P0001" => Self::Permanent,
            code if code.starts_with("22") || code.starts_with("23") => Self::Permanent,
            _ => Self::Other,
        }
    }
}

/// Counts the connections that were lost during the statements of single messages.
#[derive(Clone, Default)]
pub(super) struct Losses(Arc<Mutex<HashMap<Key, u32>>>);

impl Losses {
    /// The verdict on a lost connection: not the message's fault, unless it happens to this message again and again.
    pub(super) fn verdict(&self, key: Option<Key>) -> Verdict {
        let Some(key) = key else { return Verdict::Retry };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= LIMIT && !known.contains_key(&key) {
            known.clear();
        }
        let losses = known.entry(key).or_insert(0);
        *losses += 1;
        if *losses < LOSSES {
            return Verdict::Unavailable;
        }
        known.remove(&key);
        Verdict::Retry
    }

    /// A statement of this message was answered.
    pub(super) fn answered(&self, key: Option<Key>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = key
            && !known.is_empty()
        {
            known.remove(&key);
        }
    }
}

/// What the server says, without the line of its own source that Postgres adds, and without details, which may hold data.
pub(super) fn describe(cause: &sqlx::Error) -> String {
    describe_behind(cause, 0)
}

/// As [`describe`], of a statement with so many characters of ours before it.
pub(super) fn describe_behind(cause: &sqlx::Error, before: usize) -> String {
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

    #[test]
    fn a_message_whose_statements_lose_connections_again_and_again_is_charged() {
        let losses = Losses::default();
        let key = Key::from_bytes([1; 16]);
        let verdicts: Vec<_> = (0..4).map(|_| losses.verdict(Some(key))).collect();
        assert_eq!(
            verdicts,
            [Verdict::Unavailable, Verdict::Unavailable, Verdict::Retry, Verdict::Unavailable]
        );
        losses.answered(Some(key));
        assert_eq!(losses.verdict(Some(key)), Verdict::Unavailable);
        assert_eq!(losses.verdict(None), Verdict::Retry);
    }
}
