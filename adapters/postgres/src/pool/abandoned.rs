//! Waits for the answer of a connection that was abandoned with a statement in flight.

use std::ops::DerefMut;
use std::time::Duration;

use sqlx::{Connection as _, PgConnection, query};
use tokio::time::{Instant, timeout};

use super::opener::SessionOpener;

/// Interval at which the server is asked whether the process still waits for its standby.
const POLL_INTERVAL: Duration = Duration::from_secs(15);
/// After this time a connection is closed, whatever its process waits for.
const MAX_HOLD: Duration = Duration::from_secs(3_600);

/// Holds `connection`, and with it its place in the pool, until its answer arrives, it is lost, or its server process `pid`
/// does not wait for a synchronous standby. Then it is dropped, which closes it.
///
/// A wait for a standby is not cancelled: the server would report the transaction as committed although the standby does not
/// have it.
pub(super) async fn hold_until_answered(
    mut connection: impl DerefMut<Target = PgConnection>,
    pid: i32,
    opener: SessionOpener,
    patience: Duration,
) {
    let (began, mut wait) = (Instant::now(), Duration::from_millis(100).min(patience));
    while began.elapsed() < MAX_HOLD {
        if timeout(wait, connection.ping()).await.is_ok() {
            // Answered or lost. A transaction may be open: closing the connection rolls it back.
            return;
        }
        match timeout(patience, waits_for_standby(pid, &opener)).await {
            Ok(Ok(true)) => wait = POLL_INTERVAL,
            Ok(Ok(false)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::debug!(%error, pid, "wait state of a Postgres process could not be read");
                return;
            }
        }
    }
}

async fn waits_for_standby(pid: i32, opener: &SessionOpener) -> Result<bool, sqlx::Error> {
    let mut session = opener.open().await?;
    let sql = "SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
    let found = query(sql).bind(pid).fetch_optional(&mut session.conn).await?;
    let _ = session.conn.close().await;
    Ok(found.is_some())
}
