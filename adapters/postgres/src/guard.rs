//! Answers that no server gives: sqlx panics at some of them, and the process must go on. [`caught`], [`guarded`].

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use onceward::Error;

use crate::error::store_error;

/// Runs `work` on a connection; a panic in it is an error of the connection, which is to be closed.
pub(crate) async fn caught<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    // A connection is not used again behind such an error, so that nothing half-done is seen.
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| Err(garbled()))
}

/// As [`caught`], for what answers with the store's errors.
pub(crate) async fn guarded<T>(
    operation: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let caught = AssertUnwindSafe(work).catch_unwind().await;
    caught.unwrap_or_else(|_| Err(store_error(operation, garbled())))
}

fn garbled() -> sqlx::Error {
    let what = "the answer cannot be read; check that it is Postgres and that nobody is in between";
    sqlx::Error::Protocol(what.to_owned())
}
