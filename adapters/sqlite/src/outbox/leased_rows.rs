//! Rows leased to a relay: [`LeasedRows`].

use std::fmt;
use std::time::Duration;

use onceward::Error;
use onceward::outbox::RowOutcome;
use onceward::store::OwnerToken;
use onceward::store::transition::micros;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Row, query};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::rows::seq_list;
use crate::error::store_error;
use crate::row::integer;
use crate::writer::{Writer, WriterConnection};

/// Duration of the lease: rows of a killed relay wait for as long.
pub(super) const LEASE: Duration = Duration::from_secs(5);
/// Interval of renewals.
const RENEW_INTERVAL: Duration = Duration::from_millis(1_500);
/// A relay that keeps rows for longer hangs, and others may take them.
const MAX_HOLD: Duration = Duration::from_secs(30);

const SETTLE: &str = "record the outcome of outbox rows";

/// Rows leased to one relay: the first of each order key, whose lease covers those after it. Dropping it returns the
/// rows.
pub struct LeasedRows {
    writer: Writer,
    token: OwnerToken,
    /// The numbers of the rows with the token.
    heads: Vec<i64>,
    /// Dropping it ends the renewals.
    _renewing: oneshot::Sender<()>,
    is_settled: bool,
}

impl fmt::Debug for LeasedRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasedRows").field("heads", &self.heads).finish_non_exhaustive()
    }
}

impl LeasedRows {
    pub(super) fn new(writer: Writer, token: OwnerToken, heads: Vec<i64>) -> Self {
        let (renewing, ended) = oneshot::channel();
        tokio::spawn(renew(writer.clone(), token, heads.clone(), ended));
        Self { writer, token, heads, _renewing: renewing, is_settled: false }
    }

    /// See [`OutboxStore::settle`](onceward::outbox::OutboxStore::settle).
    pub(super) async fn settle(mut self, outcomes: Vec<(i64, RowOutcome)>) -> Result<(), Error> {
        let writer = self.writer.clone();
        let failed = |error| store_error(SETTLE, error);
        let mut slot = writer.turn().await;
        slot.begin().await.map_err(failed)?;
        let noted = match slot.conn().await {
            Ok(conn) => self.record_outcomes(conn, &writer, &outcomes).await,
            Err(error) => Err(error),
        };
        slot.finish(noted).await.map_err(failed)?;
        self.is_settled = true;
        Ok(())
    }

    async fn record_outcomes(
        &self,
        conn: &mut SqliteConnection,
        writer: &Writer,
        outcomes: &[(i64, RowOutcome)],
    ) -> Result<(), sqlx::Error> {
        let now = writer.time(&mut *conn).await?;
        let count = "SELECT count(*) FROM onceward_outbox WHERE taken_by = ? \
                     AND seq IN (SELECT value FROM json_each(?))";
        let still: i64 = query(count)
            .bind(self.token.as_bytes().as_slice())
            .bind(seq_list(&self.heads))
            .fetch_one(&mut *conn)
            .await?
            .try_get(0)?;
        let is_ours = usize::try_from(still).is_ok_and(|still| still == self.heads.len());
        let published = outcomes.iter().filter(|(_, outcome)| *outcome == RowOutcome::Published);
        let published: Vec<i64> = published.map(|(seq, _)| *seq).collect();
        // Even if another relay has leased them since: the broker has confirmed them.
        query(
            "UPDATE onceward_outbox SET published_at = ?, error = NULL \
             WHERE published_at IS NULL AND seq IN (SELECT value FROM json_each(?))",
        )
        .bind(integer(now))
        .bind(seq_list(&published))
        .execute(&mut *conn)
        .await?;
        for (seq, outcome) in outcomes {
            // The relay that has leased the rows since reports their failures.
            let (RowOutcome::Failed { retry_in, error }, true) = (outcome, is_ours) else { continue };
            query(
                "UPDATE onceward_outbox SET attempts = attempts + 1, next_at = ?, error = substr(?, 1, 1024) \
                 WHERE published_at IS NULL AND seq = ?",
            )
            .bind(integer(now.saturating_add(micros(*retry_in))))
            .bind(error.replace('\0', "\u{fffd}"))
            .bind(seq)
            .execute(&mut *conn)
            .await?;
        }
        return_rows(conn, self.token, &self.heads).await
    }
}

impl Drop for LeasedRows {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        // Without a runtime they become available when the lease ends.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (writer, token, heads) = (self.writer.clone(), self.token, std::mem::take(&mut self.heads));
        runtime.spawn(async move {
            let mut slot = writer.turn().await;
            if let Err(error) =
                in_transaction(&mut slot, async |conn| return_rows(conn, token, &heads).await).await
            {
                tracing::debug!(%error, "outbox rows not returned; their lease ends soon");
            }
        });
    }
}

/// Renews the lease until the other end of `ended` is dropped.
async fn renew(writer: Writer, token: OwnerToken, heads: Vec<i64>, mut ended: oneshot::Receiver<()>) {
    let end = Instant::now() + MAX_HOLD - LEASE;
    while Instant::now() < end {
        tokio::select! {
            biased;
            _ = &mut ended => return,
            () = tokio::time::sleep(RENEW_INTERVAL) => {}
        }
        let mut slot = writer.turn().await;
        // The rows may have been returned during the wait.
        if ended.try_recv() != Err(oneshot::error::TryRecvError::Empty) {
            return;
        }
        let renewed = in_transaction(&mut slot, async |conn| {
            let until = integer(writer.time(&mut *conn).await?.saturating_add(micros(LEASE)));
            let sql = "UPDATE onceward_outbox SET taken_until = ? \
                       WHERE taken_by = ? AND seq IN (SELECT value FROM json_each(?))";
            let token = token.as_bytes().as_slice();
            query(sql).bind(until).bind(token).bind(seq_list(&heads)).execute(conn).await.map(drop)
        });
        if let Err(error) = renewed.await {
            tracing::debug!(%error, "lease of outbox rows not renewed; another relay may publish them as well");
        }
    }
}

async fn return_rows(
    conn: &mut SqliteConnection,
    token: OwnerToken,
    heads: &[i64],
) -> Result<(), sqlx::Error> {
    let sql = "UPDATE onceward_outbox SET taken_by = NULL, taken_until = 0 \
               WHERE taken_by = ? AND seq IN (SELECT value FROM json_each(?))";
    query(sql).bind(token.as_bytes().as_slice()).bind(seq_list(heads)).execute(conn).await.map(drop)
}

/// Executes one change in its own transaction.
async fn in_transaction(
    slot: &mut WriterConnection,
    change: impl AsyncFnOnce(&mut SqliteConnection) -> Result<(), sqlx::Error>,
) -> Result<(), sqlx::Error> {
    slot.begin().await?;
    let outcome = match slot.conn().await {
        Ok(conn) => change(conn).await,
        Err(error) => Err(error),
    };
    slot.finish(outcome).await
}
