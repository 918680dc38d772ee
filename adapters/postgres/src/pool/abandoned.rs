//! What becomes of a connection that was given up while it owed an answer.

use std::time::Duration;

use sqlx::{Connection as _, query};
use tokio::time::{Instant, timeout};

use super::PooledSession;

/// How often the server is asked whether a process waits for its standby.
const ASK_EVERY: Duration = Duration::from_secs(15);
/// A connection is closed after this time, whatever its process waits for.
const LONGEST: Duration = Duration::from_secs(3_600);

/// Holds `pooled`, and with it its place in the pool, until it is answered, lost, or not waiting for a standby.
///
/// Such a wait is not cancelled: the server would report the transaction as committed although the standby has it not.
pub(super) async fn hold_until_answered(mut pooled: PooledSession, patience: Duration) {
    let (began, mut wait) = (Instant::now(), Duration::from_millis(100).min(patience));
    while began.elapsed() < LONGEST {
        if timeout(wait, pooled.ping()).await.is_ok() {
            // Answered or lost. A transaction may be open on it: it is closed, which rolls that back.
            return;
        }
        match timeout(patience, waits_for_standby(&pooled)).await {
            Ok(Ok(true)) => wait = ASK_EVERY,
            Ok(Ok(false)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::debug!(%error, "could not ask what a process of Postgres waits for");
                return;
            }
        }
    }
}

async fn waits_for_standby(pooled: &PooledSession) -> Result<bool, sqlx::Error> {
    let Some(pid) = pooled.session.as_ref().map(|session| session.pid) else { return Ok(false) };
    let mut asks = pooled.pool.0.opener.open().await?;
    let sql = "SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
    let found = query(sql).bind(pid).fetch_optional(&mut asks.conn).await?;
    let _ = asks.conn.close().await;
    Ok(found.is_some())
}
