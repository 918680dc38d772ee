//! Classifies errors of SQLite and of the driver.

use std::borrow::Cow;

use onceward::{Error, ErrorKind};

/// Classifies `error` of `operation`. It concerns the whole call, and so is never [`ErrorKind::Corrupt`], which would end the
/// claim of a key whose record cannot be read.
pub(crate) fn store_error(operation: impl Into<Cow<'static, str>>, error: sqlx::Error) -> Error {
    let (kind, context) = match &error {
        sqlx::Error::Database(database) => {
            let code = database.code().and_then(|code| code.parse().ok()).unwrap_or(0);
            classify(code)
        }
        sqlx::Error::Io(_) => (ErrorKind::Unavailable, "the file cannot be read or written"),
        sqlx::Error::WorkerCrashed | sqlx::Error::PoolClosed | sqlx::Error::BeginFailed => {
            (ErrorKind::Unavailable, "the connection was lost; the next call reopens it")
        }
        sqlx::Error::PoolTimedOut => (ErrorKind::Timeout, "no connection became free in time"),
        sqlx::Error::Configuration(_) => (ErrorKind::Config, "the connection's settings are invalid"),
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. } => (
            // Not in the record of a key: `row.rs` decodes these one by one.
            ErrorKind::Config,
            "a value in onceward's tables is not what this version writes; was a table changed by hand? Restore the file \
             from a backup",
        ),
        _ => (ErrorKind::Unknown, "SQLite answered with an unexpected error"),
    };
    Error::new(kind, operation, context).with_source(error)
}

/// Classifies a result code of SQLite, whose low byte is the primary code.
fn classify(code: i32) -> (ErrorKind, &'static str) {
    match code & 0xff {
        5 | 6 => (
            ErrorKind::Unavailable,
            "another connection has locked the file for writing; if this is frequent, raise busy_timeout",
        ),
        3 | 23 => (ErrorKind::Denied, "permission denied; give this user the right to write the file"),
        8 => (
            ErrorKind::Denied,
            "the file cannot be written; check its owner, its directory's and whether the disk is mounted read-only",
        ),
        7 => (ErrorKind::Unavailable, "out of memory"),
        9 => (ErrorKind::Unavailable, "the call was interrupted"),
        10 => (ErrorKind::Unavailable, "the disk reports a read or write error"),
        13 => (ErrorKind::Unavailable, "the disk is full; free some space"),
        14 => (
            ErrorKind::Unavailable,
            "the file cannot be opened; its directory must exist and be writable by this user",
        ),
        15 => {
            (ErrorKind::Unavailable, "the file's locks do not work; it must not lie on a network file system")
        }
        // It concerns every key, whose runs may have had their effect: no claim ends because of it, and writes are retried.
        11 => (ErrorKind::Unavailable, "the file is damaged; restore it from a backup"),
        24 | 26 => (
            ErrorKind::Config,
            "the file is not a SQLite database; choose another path, or restore the file if it was one",
        ),
        22 => (ErrorKind::Unsupported, "the file system does not support so large a file"),
        1 => (ErrorKind::Internal, "SQLite rejects a statement; was the schema changed by hand?"),
        12 | 16..=21 | 25 => (ErrorKind::Internal, "SQLite rejects a statement of this program"),
        _ => (ErrorKind::Unknown, "SQLite answered with an unexpected error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: i32) -> ErrorKind {
        classify(code).0
    }

    #[test]
    fn a_busy_file_is_worth_another_try_with_every_extended_code() {
        for code in [5, 5 | (1 << 8), 5 | (2 << 8), 5 | (3 << 8), 6, 6 | (1 << 8)] {
            assert!(Error::new(kind(code), "write", "").is_retryable(), "{code}");
        }
    }

    #[test]
    fn no_error_of_the_whole_file_is_taken_for_one_of_a_record() {
        for code in (0..=0xffff).chain([-1]) {
            assert_ne!(kind(code), ErrorKind::Corrupt, "{code}");
        }
        for error in [
            sqlx::Error::Decode("not a number".into()),
            sqlx::Error::ColumnNotFound("value".into()),
            sqlx::Error::ColumnIndexOutOfBounds { index: 1, len: 1 },
        ] {
            assert_eq!(store_error("read", error).kind(), ErrorKind::Config);
        }
    }

    #[test]
    fn a_full_disk_and_a_damaged_file_are_worth_another_try_and_no_database_is_not() {
        assert_eq!(kind(13), ErrorKind::Unavailable);
        assert_eq!(kind(11), ErrorKind::Unavailable);
        assert_eq!(kind(11 | (1 << 8)), ErrorKind::Unavailable);
        assert_eq!(kind(26), ErrorKind::Config);
        assert_eq!(kind(8 | (4 << 8)), ErrorKind::Denied);
    }
}
