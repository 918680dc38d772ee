//! Removes expired keys in the background: [`KeyPurge`].

use std::sync::Arc;

use onceward::store::PositionStore;

/// The number of expired keys removed in one request.
const PURGE_BATCH: u32 = 1000;
/// Removes expired keys until it is dropped.
pub(super) struct KeyPurge(tokio::task::AbortHandle);

impl KeyPurge {
    pub(super) fn start<S: PositionStore>(store: Arc<S>) -> Self {
        let purge = async move {
            // Other stores expire keys by themselves.
            let Some(expiring) = store.expiring() else { return };
            let interval = expiring.purge_interval();
            loop {
                tokio::time::sleep(interval).await;
                loop {
                    match expiring.purge(PURGE_BATCH).await {
                        Ok(removed) if removed >= u64::from(PURGE_BATCH) => {}
                        Ok(_) => break,
                        Err(error) => {
                            tracing::debug!(%error, "removing expired keys failed; retrying later");
                            break;
                        }
                    }
                }
            }
        };
        Self(tokio::spawn(purge).abort_handle())
    }
}

impl Drop for KeyPurge {
    fn drop(&mut self) {
        self.0.abort();
    }
}
