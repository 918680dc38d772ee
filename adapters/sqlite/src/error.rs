//! Where SQLite's errors enter: one function, one table.

use std::borrow::Cow;

use onceward::{Error, ErrorKind};

/// What `error`, met while attempting `operation`, means to the caller.
pub(crate) fn store_error(operation: impl Into<Cow<'static, str>>, error: sqlx::Error) -> Error {
    let (kind, context) = match &error {
        sqlx::Error::Database(database) => {
            let code = database.code().and_then(|code| code.parse().ok()).unwrap_or(0);
            meaning(code)
        }
        sqlx::Error::Io(_) => (ErrorKind::Unavailable, "the file cannot be read or written"),
        sqlx::Error::WorkerCrashed | sqlx::Error::PoolClosed | sqlx::Error::BeginFailed => {
            (ErrorKind::Unavailable, "the connection is gone; it is opened again with the next call")
        }
        sqlx::Error::PoolTimedOut => (ErrorKind::Timeout, "no connection became free in time"),
        sqlx::Error::Configuration(_) => (ErrorKind::Config, "the connection's settings are refused"),
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. } => (
            ErrorKind::Corrupt,
            "a stored value is not what this version writes; restore the file from a backup",
        ),
        _ => (ErrorKind::Unknown, "SQLite answered with an unexpected error"),
    };
    Error::new(kind, operation, context).with_source(error)
}

/// SQLite's result codes; the low byte is the primary code.
fn meaning(code: i32) -> (ErrorKind, &'static str) {
    match code & 0xff {
        5 | 6 => (
            ErrorKind::Unavailable,
            "another connection holds the file for writing; if that is usual, raise busy_timeout",
        ),
        3 | 23 => (ErrorKind::Denied, "access to the file is refused; give this user the right to write it"),
        8 => (
            ErrorKind::Denied,
            "the file cannot be written; check its owner, its directory's and whether the disk is mounted read-only",
        ),
        7 => (ErrorKind::Unavailable, "memory is used up"),
        9 => (ErrorKind::Unavailable, "the call was interrupted"),
        10 => (ErrorKind::Unavailable, "the disk fails to read or write"),
        13 => (ErrorKind::Unavailable, "the disk is full; make room"),
        14 => (
            ErrorKind::Unavailable,
            "the file cannot be opened; its directory must exist and be writable by this user",
        ),
        15 => {
            (ErrorKind::Unavailable, "the file's locks do not work; it must not lie on a network file system")
        }
        11 => (ErrorKind::Corrupt, "the file is damaged; restore it from a backup"),
        24 | 26 => (ErrorKind::Corrupt, "the file is no SQLite database; choose another path"),
        22 => (ErrorKind::Unsupported, "the file system cannot hold so large a file"),
        1 => (ErrorKind::Internal, "SQLite refuses a statement; was the schema changed by hand?"),
        12 | 16..=21 | 25 => (ErrorKind::Internal, "SQLite refuses a statement of this program"),
        _ => (ErrorKind::Unknown, "SQLite answered with an unexpected error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: i32) -> ErrorKind {
        meaning(code).0
    }

    #[test]
    fn a_busy_file_is_worth_another_try_with_every_extended_code() {
        for code in [5, 5 | (1 << 8), 5 | (2 << 8), 5 | (3 << 8), 6, 6 | (1 << 8)] {
            assert!(Error::new(kind(code), "write", "").is_retryable(), "{code}");
        }
    }

    #[test]
    fn a_full_disk_is_worth_another_try_and_a_damaged_file_is_not() {
        assert_eq!(kind(13), ErrorKind::Unavailable);
        assert_eq!(kind(11), ErrorKind::Corrupt);
        assert_eq!(kind(26), ErrorKind::Corrupt);
        assert_eq!(kind(8 | (4 << 8)), ErrorKind::Denied);
    }
}
