//! Removes old entries of the audit trail during a run: [`clean`].

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use onceward::{ErrorKind, Scope};

use crate::commands::audit::remove_old;
use crate::config::Config;
use crate::registry::OpenStore;

/// The interval between cleanings.
const INTERVAL: Duration = Duration::from_secs(3_600);

/// Removes what is older than `audit_retention`, at the start and every hour, until it is dropped. Workers may lack the right to; then
/// a command of an operator does it, and this one gives up.
pub(super) async fn clean(config: &Config, scope: &Scope, store: &OpenStore) -> Infallible {
    let Some(trail) = &store.audit else { return pending().await };
    let retention = config.limits().audit_retention.get();
    loop {
        match remove_old(trail.as_ref(), scope, retention).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(%scope, removed, "old entries of the audit trail removed"),
            Err(error) if error.kind() == ErrorKind::Denied => {
                tracing::info!(
                    %scope, %error,
                    "audit trail not cleaned; run `onceward keys purge` from a scheduler, or grant the right to remove entries"
                );
                return pending().await;
            }
            Err(error) => tracing::warn!(%scope, ?error, "audit trail not cleaned; retrying in an hour"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
