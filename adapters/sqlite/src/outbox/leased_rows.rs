//! Rows that a relay has: [`LeasedRows`].

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

/// How long rows stay a relay's without a word: so long they wait after it was killed.
pub(super) const HOLD: Duration = Duration::from_secs(5);
/// How often a relay says that it still has them.
const RENEW: Duration = Duration::from_millis(1_500);
/// A relay hangs that has them for longer, and others may have them.
const LONGEST: Duration = Duration::from_secs(30);

const SETTLE: &str = "note what became of rows of the outbox";

/// Rows that are one relay's: the first of each order key, which stands for those behind it. Dropped, it gives them back.
pub struct LeasedRows {
    writer: Writer,
    token: OwnerToken,
    /// The rows that bear the token.
    heads: Vec<i64>,
    /// Its end ends the renewals.
    _renewing: oneshot::Sender<()>,
    given_back: bool,
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
        Self { writer, token, heads, _renewing: renewing, given_back: false }
    }

    /// See [`OutboxStore::settle`](onceward::outbox::OutboxStore::settle).
    pub(super) async fn settle(mut self, outcomes: Vec<(i64, RowOutcome)>) -> Result<(), Error> {
        let writer = self.writer.clone();
        let failed = |error| store_error(SETTLE, error);
        let mut slot = writer.turn().await;
        slot.begin().await.map_err(failed)?;
        let noted = match slot.conn().await {
            Ok(conn) => self.note(conn, &writer, &outcomes).await,
            Err(error) => Err(error),
        };
        slot.finish(noted).await.map_err(failed)?;
        self.given_back = true;
        Ok(())
    }

    async fn note(
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
        // Whoever has them by now: the broker has them too.
        query(
            "UPDATE onceward_outbox SET published_at = ?, error = NULL \
             WHERE published_at IS NULL AND seq IN (SELECT value FROM json_each(?))",
        )
        .bind(integer(now))
        .bind(seq_list(&published))
        .execute(&mut *conn)
        .await?;
        for (seq, outcome) in outcomes {
            // What another relay has it also has to say about.
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
        give_back(conn, self.token, &self.heads).await
    }
}

impl Drop for LeasedRows {
    fn drop(&mut self) {
        if self.given_back {
            return;
        }
        // Without a runtime they are free when their time is over.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (writer, token, heads) = (self.writer.clone(), self.token, std::mem::take(&mut self.heads));
        runtime.spawn(async move {
            let mut slot = writer.turn().await;
            if let Err(error) = changed(&mut slot, async |conn| give_back(conn, token, &heads).await).await {
                tracing::debug!(%error, "rows of the outbox are not given back, but free in a moment");
            }
        });
    }
}

/// Keeps the rows until the other end of `ended` is dropped.
async fn renew(writer: Writer, token: OwnerToken, heads: Vec<i64>, mut ended: oneshot::Receiver<()>) {
    let end = Instant::now() + LONGEST - HOLD;
    while Instant::now() < end {
        tokio::select! {
            biased;
            _ = &mut ended => return,
            () = tokio::time::sleep(RENEW) => {}
        }
        let mut slot = writer.turn().await;
        // The wait may have been long, and the rows given back.
        if ended.try_recv() != Err(oneshot::error::TryRecvError::Empty) {
            return;
        }
        let renewed = changed(&mut slot, async |conn| {
            let until = integer(writer.time(&mut *conn).await?.saturating_add(micros(HOLD)));
            let sql = "UPDATE onceward_outbox SET taken_until = ? \
                       WHERE taken_by = ? AND seq IN (SELECT value FROM json_each(?))";
            let token = token.as_bytes().as_slice();
            query(sql).bind(until).bind(token).bind(seq_list(&heads)).execute(conn).await.map(drop)
        });
        if let Err(error) = renewed.await {
            tracing::debug!(%error, "rows of the outbox are not held for longer; another relay may send them as well");
        }
    }
}

async fn give_back(conn: &mut SqliteConnection, token: OwnerToken, heads: &[i64]) -> Result<(), sqlx::Error> {
    let sql = "UPDATE onceward_outbox SET taken_by = NULL, taken_until = 0 \
               WHERE taken_by = ? AND seq IN (SELECT value FROM json_each(?))";
    query(sql).bind(token.as_bytes().as_slice()).bind(seq_list(heads)).execute(conn).await.map(drop)
}

/// One change in a transaction of its own.
async fn changed(
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
