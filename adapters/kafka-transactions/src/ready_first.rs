//! A timeout that costs nothing for what has its result at once: [`timeout`].

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::poll;
use tokio::time::error::Elapsed;

/// Runs a future for at most `limit`, and drops it then. A future that has its result when it is first polled starts no timer.
///
/// # Errors
/// The time is over.
pub(crate) async fn timeout<F: Future>(limit: Duration, run: F) -> Result<F::Output, Elapsed> {
    let mut run = pin!(run);
    match poll!(run.as_mut()) {
        Poll::Ready(output) => Ok(output),
        Poll::Pending => tokio::time::timeout(limit, run).await,
    }
}
