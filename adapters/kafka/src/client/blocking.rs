//! Runs blocking calls of the client on tokio's blocking threads.

use onceward::{Error, ErrorKind};

/// Runs `work` on a blocking thread.
///
/// # Errors
/// [`ErrorKind::Internal`] if `work` panicked.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::new(ErrorKind::Internal, "call the Kafka client", "the task that calls it panicked")
            .with_source(error)
    })
}
