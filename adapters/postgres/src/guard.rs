//! Answers that no server gives: sqlx panics at some of them, and the process must go on. [`catch_panic`], [`catch_panic_in_call`].

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use onceward::{Error, ErrorKind};

use crate::error::store_error;

/// Runs `work` on a connection; a panic in it is an error of the connection, which is to be closed.
pub(crate) async fn catch_panic<T>(
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    // A connection is not used again behind such an error, so that nothing half-done is seen.
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| Err(garbled()))
}

/// As [`catch_panic`], for what answers with the store's errors.
pub(crate) async fn catch_panic_in_call<T>(
    operation: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let catch_panic = AssertUnwindSafe(work).catch_unwind().await;
    catch_panic.unwrap_or_else(|_| Err(store_error(operation, garbled())))
}

fn garbled() -> sqlx::Error {
    let what = "the answer cannot be read; check that it is Postgres and that nobody is in between";
    sqlx::Error::Protocol(what.to_owned())
}

/// Gives up on a server that says nothing; the connection is closed.
pub(crate) async fn within<T>(
    patience: Duration,
    operation: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(patience, catch_panic_in_call(operation, work)).await.unwrap_or_else(|_| {
        let context = "the server said nothing for longer than statement_timeout; it may have happened";
        Err(Error::new(ErrorKind::Timeout, operation, context))
    })
}

/// The outcome of a task of our own; a panic in it goes on in the caller.
pub(crate) fn join_task<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T, Error> {
    outcome.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::new(
            ErrorKind::Unavailable,
            "wait for a task of the Postgres store",
            "the runtime ended before the transaction did",
        ),
    })
}
