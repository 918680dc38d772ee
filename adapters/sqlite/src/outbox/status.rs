//! Reports the rows that wait in the outbox.

use std::time::Duration;

use onceward::Error;
use onceward::outbox::{FailingRow, OutboxStatus};
use sqlx::{Row, query};

use crate::error::store_error;
use crate::reader::READ;
use crate::store::SqliteStore;

/// Failing rows reported at most.
const MAX_REPORTED: i64 = 10;

pub(super) async fn status(store: &SqliteStore) -> Result<OutboxStatus, Error> {
    let failed = |error| store_error(READ, error);
    let counted = query(
        "SELECT count(*), count(*) FILTER (WHERE attempts > 0), min(written_at), \
         (SELECT count(*) FROM onceward_outbox WHERE published_at IS NOT NULL), \
         count(*) FILTER (WHERE attempts = 0 AND order_key IN (SELECT f.order_key FROM onceward_outbox f \
           WHERE f.published_at IS NULL AND f.attempts > 0)) \
         FROM onceward_outbox WHERE published_at IS NULL",
    );
    let now = store.writer().now();
    let counted = store.reader().lock().await?.fetch(counted).await?;
    let Some(row) = counted.first() else { return Ok(OutboxStatus::default()) };
    let count = |n| Ok::<_, Error>(u64::try_from(row.try_get::<i64, _>(n).map_err(failed)?).unwrap_or(0));
    let written: Option<i64> = row.try_get(2).map_err(failed)?;
    let oldest =
        written.map(|at| Duration::from_micros(now.saturating_sub(u64::try_from(at).unwrap_or_default())));
    let mut status = OutboxStatus {
        waiting: count(0)?,
        failing: count(1)?,
        held: count(4)?,
        oldest,
        kept: count(3)?,
        worst: Vec::new(),
    };
    if status.failing > 0 {
        let worst = query(
            "SELECT seq, CAST(id AS BLOB), CAST(destination AS BLOB), attempts, coalesce(error, '') FROM onceward_outbox \
             WHERE published_at IS NULL AND attempts > 0 ORDER BY attempts DESC, seq LIMIT ?",
        );
        for row in store.reader().lock().await?.fetch(worst.bind(MAX_REPORTED)).await? {
            // Unreadable rows are among them.
            let text = |n| {
                let bytes: &[u8] = row.try_get(n).map_err(failed)?;
                Ok::<_, Error>(String::from_utf8_lossy(bytes).into_owned())
            };
            status.worst.push(FailingRow {
                seq: row.try_get(0).map_err(failed)?,
                id: text(1)?,
                destination: text(2)?,
                attempts: u32::try_from(row.try_get::<i64, _>(3).map_err(failed)?).unwrap_or(0),
                error: row.try_get(4).map_err(failed)?,
            });
        }
    }
    Ok(status)
}
