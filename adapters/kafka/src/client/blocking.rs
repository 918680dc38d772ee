//! Runs what blocks on a thread that may.

use onceward::{Error, ErrorKind};

/// Runs `work`.
///
/// # Errors
/// It panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::new(ErrorKind::Internal, "ask the Kafka client", "the task that asks it panicked")
            .with_source(error)
    })
}
