//! Where Postgres's errors enter: one function, one table.

use std::borrow::Cow;

use onceward::{Error, ErrorKind};

/// What `error`, met while attempting `operation`, means to the caller.
pub(crate) fn store_error(operation: impl Into<Cow<'static, str>>, error: sqlx::Error) -> Error {
    let (kind, context) = match &error {
        sqlx::Error::Database(database) => meaning(database.code().as_deref().unwrap_or("")),
        sqlx::Error::Io(_) => (ErrorKind::Unavailable, "the connection failed; is the server up?"),
        sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::PoolClosed
        | sqlx::Error::BeginFailed => {
            (ErrorKind::Unavailable, "the connection is gone; another is opened with the next call")
        }
        sqlx::Error::PoolTimedOut => (
            ErrorKind::Timeout,
            "no connection became free in time; is the server up, and max_connections large enough?",
        ),
        sqlx::Error::Tls(_) => {
            (ErrorKind::Config, "TLS failed; check sslmode, sslrootcert and the host's name")
        }
        sqlx::Error::Configuration(_) => (ErrorKind::Config, "the connection's settings are refused"),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => (
            ErrorKind::Corrupt,
            "a stored value is not what this version writes; was a table changed by hand?",
        ),
        _ => (ErrorKind::Unknown, "Postgres answered with an unexpected error"),
    };
    Error::new(kind, operation, context).with_source(error)
}

/// What an SQLSTATE means.
fn meaning(code: &str) -> (ErrorKind, &'static str) {
    match code {
        "55P03" => (ErrorKind::Timeout, "another transaction holds a row for longer than lock_timeout"),
        "57014" => (ErrorKind::Timeout, "the statement took longer than statement_timeout, or was cancelled"),
        "40001" | "40P01" => (ErrorKind::Unavailable, "transactions got in each other's way; try again"),
        "25006" => (
            ErrorKind::Unavailable,
            "the server is read-only: a standby, or default_transaction_read_only is on; point at the primary",
        ),
        "42501" => (ErrorKind::Denied, "the role lacks a right; grant it what the store's grants list"),
        "3D000" => (ErrorKind::Config, "there is no such database; create it or name another"),
        "3F000" | "42P01" | "42703" => (
            ErrorKind::Config,
            "the schema is not there or not complete; run onceward's migrations, or name the right schema",
        ),
        "25P02" => (
            ErrorKind::Internal,
            "a statement in the transaction failed before; the handler must return its error",
        ),
        "25P03" => (ErrorKind::Unavailable, "the transaction was idle for too long and the server ended it"),
        "OW001" => {
            (ErrorKind::Internal, "the claim is not held (any more); roll back, another delivery runs or ran")
        }
        "0A000" => (ErrorKind::Unsupported, "this server cannot do that; Postgres 13 or later is needed"),
        _ => match code.get(..2).unwrap_or("") {
            "08" | "57" => (ErrorKind::Unavailable, "the server ended the connection; is it restarting?"),
            "53" => (ErrorKind::Unavailable, "the server is out of connections, memory or disk"),
            "58" => (ErrorKind::Unavailable, "the server's disk fails"),
            "28" => (ErrorKind::Denied, "the login is refused; check user, password and pg_hba.conf"),
            "22" | "23" | "42" => (ErrorKind::Internal, "the statement is refused"),
            "XX" => (ErrorKind::Corrupt, "the server's files are damaged; see its log"),
            _ => (ErrorKind::Unknown, "Postgres answered with an unexpected error"),
        },
    }
}

/// The SQLSTATE.
pub(crate) fn code(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error().and_then(|error| error.code())
}

/// Another transaction holds a row.
pub(crate) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| code == "55P03")
}

/// The transaction was rolled back for the sake of another.
pub(crate) fn is_conflict(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| code == "40001" || code == "40P01")
}

/// The server refuses what the transaction holds, and rolled it back.
pub(crate) fn is_data(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
}

/// The connection is gone, and another may work.
pub(crate) fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        _ => code(error).is_some_and(|code| code.starts_with("08") || code.starts_with("57P")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_a_read_only_primary_and_a_deadlock_are_worth_another_try_and_a_missing_right_is_not() {
        for code in ["57P01", "57P03", "25006", "40P01", "40001", "55P03", "53100", "53300", "08006"] {
            assert!(Error::new(meaning(code).0, "write", "").is_retryable(), "{code}");
        }
        for code in ["42P01", "23505", "XX001"] {
            assert!(!Error::new(meaning(code).0, "write", "").is_retryable(), "{code}");
        }
    }
}
