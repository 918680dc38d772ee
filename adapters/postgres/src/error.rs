//! Where Postgres's errors enter: one function, one table.

use std::borrow::Cow;
use std::fmt;

use onceward::{Error, ErrorKind, HandlerError};
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

/// What `error`, met while attempting `operation`, means to the caller. It concerns the whole call, and so is never
/// [`ErrorKind::Corrupt`], which ends the claim of a key whose record cannot be read.
pub(crate) fn store_error(operation: impl Into<Cow<'static, str>>, error: sqlx::Error) -> Error {
    let (kind, context) = match &error {
        sqlx::Error::Database(database) => {
            meaning(database.code().as_deref().unwrap_or(""), database.message())
        }
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
            (ErrorKind::Denied, "TLS failed; check sslmode, sslrootcert and the host's name")
        }
        sqlx::Error::Configuration(_) => (ErrorKind::Config, "the session cannot be used as it is"),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => (
            // Not of one key's record: those are read in `row.rs`, each on its own.
            ErrorKind::Config,
            "a stored value is not what this version writes; was a table changed by hand?",
        ),
        sqlx::Error::RowNotFound => (
            ErrorKind::Conflict,
            "a row that was there a moment ago was removed meanwhile; if that lasts, was a table changed by hand?",
        ),
        _ => (ErrorKind::Unknown, "Postgres answered with an unexpected error"),
    };
    Error::new(kind, operation, context).with_source(ServerError::from(error))
}

/// A server's error as people should see it: its message, detail, hint and code, without the line of the server's own
/// source that reported it.
#[derive(Debug)]
pub(crate) struct ServerError(sqlx::Error);

impl From<sqlx::Error> for ServerError {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_database_error() {
            Some(error) => f.write_str(&describe(error)),
            None => self.0.fmt(f),
        }
    }
}

impl std::error::Error for ServerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // A database error is its own cause, in other words.
        if self.0.as_database_error().is_some() { None } else { std::error::Error::source(&self.0) }
    }
}

/// What the server says: message, detail and hint, and the SQLSTATE.
pub(crate) fn describe(error: &dyn DatabaseError) -> String {
    let mut text = error.message().to_owned();
    if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
        for more in [error.detail(), error.hint()].into_iter().flatten() {
            text.push_str("; ");
            text.push_str(more);
        }
    }
    match error.code() {
        Some(code) if !code.is_empty() => format!("{text} (SQLSTATE {code})"),
        _ => text,
    }
}

/// What an SQLSTATE means. `message` tells poolers from servers, whose codes they share.
fn meaning(code: &str, message: &str) -> (ErrorKind, &'static str) {
    match code {
        "55P03" => {
            (ErrorKind::Conflict, "another transaction holds a row or table for longer than lock_timeout")
        }
        "57014" => (ErrorKind::Timeout, "the statement took longer than statement_timeout, or was cancelled"),
        "40001" | "40P01" => (ErrorKind::Conflict, "it was rolled back in favour of another transaction"),
        "25006" => (
            ErrorKind::Unavailable,
            "the server is read-only: a standby, or default_transaction_read_only is on; point at the primary",
        ),
        "42501" => (ErrorKind::Denied, "the role lacks a right; grant it what the store's grants list"),
        "3D000" => (ErrorKind::Config, "there is no such database; create it or name another"),
        "3F000" | "42P01" | "42703" | "42883" => (
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
        "26000" | "42P05" => (
            ErrorKind::Unavailable,
            "the connection's prepared statements are gone; does a pooler share sessions between transactions? Use \
             its session mode",
        ),
        "0A000" if message.contains("cached plan") => {
            (ErrorKind::Unavailable, "a table was changed meanwhile; the statement is prepared again")
        }
        "0A000" => (ErrorKind::Unsupported, "this server cannot do that; Postgres 13 or later is needed"),
        "08P01" if message.contains("startup parameter") => (
            ErrorKind::Config,
            "a pooler rejects a startup parameter; remove `options` from the URL and PGOPTIONS, or let the pooler \
             ignore that parameter",
        ),
        "22P05" => (
            ErrorKind::Internal,
            "a text holds a character that the database's encoding lacks; use a UTF8 database, or other texts",
        ),
        // Damage of the files: an unreadable page, or an index that contradicts its table.
        "XX001" | "XX002" => {
            (ErrorKind::Unavailable, "the server reports damaged files; see its log and restore a backup")
        }
        _ => match code.get(..2).unwrap_or("") {
            "08" | "57" => {
                (ErrorKind::Unavailable, "the server or a pooler ended the connection; is it restarting?")
            }
            "53" => (ErrorKind::Unavailable, "the server is out of connections, memory or disk"),
            "58" => (ErrorKind::Unavailable, "the server's disk fails"),
            "28" => (ErrorKind::Denied, "the login is refused; check user, password and pg_hba.conf"),
            "40" => (ErrorKind::Conflict, "the transaction was rolled back"),
            "22" | "23" | "42" => (ErrorKind::Internal, "the statement is refused"),
            // Poolers answer so in passing, and the server when rows change under a statement.
            "XX" => (ErrorKind::Unavailable, "the server failed internally; see its log"),
            _ => (ErrorKind::Unknown, "Postgres answered with an unexpected error"),
        },
    }
}

/// What an error of the handler's own statements says about the database: that it met another transaction, or takes no statement for
/// now. A lost connection says neither, since the statement may be what ends it.
pub(crate) fn transient_kind(error: &sqlx::Error) -> Option<ErrorKind> {
    if is_stale(error) {
        return Some(ErrorKind::Conflict);
    }
    match &*code(error)? {
        "40001" | "40P01" | "55P03" => Some(ErrorKind::Conflict),
        // It starts up, lacks connections or disk, or is a standby now.
        "57P03" | "53300" | "53100" | "25006" => Some(ErrorKind::Unavailable),
        _ => None,
    }
}

/// The failure of a handler that has a transaction of its own, or none: a certain rollback (SQLSTATE 40001, 40P01, 55P03) and a
/// database that takes no statement for now use no attempt; everything else is tried again.
///
/// A transactional handler needs no such call: there a bare `?` means the same.
///
/// ```no_run
/// # use onceward::{Handled, Message};
/// # use sqlx::PgPool;
/// async fn charge(pool: PgPool, message: Message) -> Handled {
///     sqlx::query("INSERT INTO charges (payload) VALUES ($1)")
///         .bind(&message.payload()[..])
///         .execute(&pool)
///         .await
///         .map_err(onceward_postgres::handler_error)?;
///     Ok(())
/// }
/// ```
pub fn handler_error(error: sqlx::Error) -> HandlerError {
    let kind = transient_kind(&error);
    let failed = HandlerError::from(error);
    match kind {
        Some(ErrorKind::Conflict) => HandlerError::conflict(failed.text()),
        Some(_) => HandlerError::unavailable(failed.text()),
        None => failed,
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

/// What was to be created is there already, or was created at the same moment.
pub(crate) fn is_already_created(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| matches!(&*code, "23505" | "42P06" | "42P07" | "42710"))
}

/// A row was removed by another transaction between two statements of this one, which is to be rolled back and repeated.
pub(crate) fn row_removed() -> sqlx::Error {
    sqlx::Error::RowNotFound
}

/// The transaction was rolled back for the sake of another, or has to be.
pub(crate) fn is_conflict(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::RowNotFound)
        || code(error).is_some_and(|code| code == "40001" || code == "40P01")
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

/// What this connection knows of its statements is out of date; on another one they are prepared again.
pub(crate) fn is_stale(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| {
        matches!(&*code, "26000" | "42P05")
            || (code == "0A000"
                && error.as_database_error().is_some_and(|error| error.message().contains("cached plan")))
    })
}

/// The statement failed, and the connection may be used again after a rollback.
pub(crate) fn leaves_usable(error: &sqlx::Error) -> bool {
    let Some(code) = code(error) else { return matches!(error, sqlx::Error::RowNotFound) };
    let class = code.get(..2).unwrap_or("");
    !is_stale(error) && (matches!(class, "22" | "23" | "40" | "42" | "55") || code == "57014")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: &str) -> ErrorKind {
        meaning(code, "").0
    }

    #[test]
    fn only_an_answer_about_the_statement_itself_is_final() {
        for code in [
            "57P01", "57P03", "57014", "25006", "53100", "53300", "08006", "08P01", "58030", "XX000",
            "XX001", "26000", "42P05",
        ] {
            assert!(Error::new(kind(code), "write", "").is_retryable(), "{code}");
        }
        assert!(
            Error::new(meaning("0A000", "cached plan must not change result type").0, "x", "").is_retryable()
        );
        for code in ["42P01", "23505", "42501", "28P01", "28000", "0A000"] {
            assert!(!Error::new(kind(code), "write", "").is_retryable(), "{code}");
        }
    }

    #[test]
    fn a_row_that_vanished_is_a_conflict_on_a_connection_that_works() {
        let error = row_removed();
        assert!(is_conflict(&error) && leaves_usable(&error) && !is_lost(&error));
        assert_eq!(store_error("write", error).kind(), ErrorKind::Conflict);
    }

    #[test]
    fn no_error_of_a_whole_call_is_taken_for_one_of_a_record() {
        for error in [sqlx::Error::Decode("not a number".into()), sqlx::Error::ColumnNotFound("value".into())]
        {
            assert_eq!(store_error("read", error).kind(), ErrorKind::Config);
        }
        for code in ["XX001", "XX002"] {
            assert_eq!(kind(code), ErrorKind::Unavailable);
        }
    }

    #[test]
    fn a_rollback_for_the_sake_of_another_transaction_is_a_conflict() {
        for code in ["40001", "40P01", "55P03"] {
            assert_eq!(kind(code), ErrorKind::Conflict, "{code}");
        }
    }

    #[test]
    fn missing_rights_refused_logins_and_failed_tls_are_denied() {
        for code in ["28P01", "28000", "42501"] {
            assert_eq!(kind(code), ErrorKind::Denied, "{code}");
        }
        let error = store_error("connect", sqlx::Error::Tls("bad certificate".into()));
        assert_eq!(error.kind(), ErrorKind::Denied);
    }
}
