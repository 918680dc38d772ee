//! Guards calls to the driver: panics become errors, and silent servers time out.
//!
//! sqlx panics on some malformed replies, which a correct server never sends; the process must survive them.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use onceward::{Error, ErrorKind};

use crate::error::store_error;

/// Runs `work` on a connection. A panic becomes an error of the connection, which must be closed.
pub(crate) async fn catch_panic<T>(
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    // A connection is not used again after such an error, so no inconsistent state is observed.
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| Err(malformed_reply()))
}

/// As [`catch_panic`], for work that fails with the store's errors.
pub(crate) async fn catch_panic_in_call<T>(
    operation: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let catch_panic = AssertUnwindSafe(work).catch_unwind().await;
    catch_panic.unwrap_or_else(|_| Err(store_error(operation, malformed_reply())))
}

fn malformed_reply() -> sqlx::Error {
    let what = "the reply cannot be read; check that the server is Postgres and that no proxy is in between";
    sqlx::Error::Protocol(what.to_owned())
}

/// Limits `work` to `patience`. After a timeout its connection is closed.
pub(crate) async fn within<T>(
    patience: Duration,
    operation: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(patience, catch_panic_in_call(operation, work)).await.unwrap_or_else(|_| {
        let context = "no reply within statement_timeout; the outcome is unknown";
        Err(Error::new(ErrorKind::Timeout, operation, context))
    })
}

/// The outcome of a spawned task; a panic is resumed in the caller.
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
