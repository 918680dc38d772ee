//! Export of what is left at the end of the program: [`shut_down`].

use super::signal::Signal;

/// Waits for `shutdown`, which blocks until the collector has what is left; logs if it does not succeed.
pub(super) async fn shut_down<E: Send + 'static>(
    signal: Signal,
    shutdown: impl FnOnce() -> Result<(), E> + Send + 'static,
) {
    if !matches!(tokio::task::spawn_blocking(shutdown).await, Ok(Ok(()))) {
        not_exported(signal);
    }
}

pub(super) fn not_exported(signal: Signal) {
    tracing::warn!("last {} not exported: the collector did not take them in time", signal.things());
}
