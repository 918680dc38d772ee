//! What waits in the outbox.

use std::time::Duration;

use onceward::Error;
use onceward::outbox::{FailingRow, OutboxStatus};
use sqlx::{AssertSqlSafe, Row, query};

use crate::row::NOW;
use crate::session::READ;
use crate::store::PgStore;

/// Failing rows that are told.
const WORST: i64 = 10;

pub(super) async fn status(store: &PgStore) -> Result<OutboxStatus, Error> {
    let schema = store.schema();
    let asked = store.sessions().run_with_retry(READ, true, move |conn| {
        let schema = schema.clone();
        Box::pin(async move {
            let sql = format!(
                "SELECT count(*), count(*) FILTER (WHERE attempts > 0), {NOW} - min(written_at), \
                 (SELECT count(*) FROM {schema}.outbox WHERE published_at IS NOT NULL), \
                 count(*) FILTER (WHERE attempts = 0 AND order_key IN (SELECT f.order_key FROM {schema}.outbox f \
                   WHERE f.published_at IS NULL AND f.attempts > 0)) \
                 FROM {schema}.outbox WHERE published_at IS NULL"
            );
            let row = query(AssertSqlSafe(sql)).fetch_one(&mut *conn).await?;
            let count = |n| Ok::<_, sqlx::Error>(u64::try_from(row.try_get::<i64, _>(n)?).unwrap_or(0));
            let oldest: Option<i64> = row.try_get(2)?;
            let oldest = oldest.map(|age| Duration::from_micros(u64::try_from(age).unwrap_or(0)));
            let mut status = OutboxStatus {
                waiting: count(0)?,
                failing: count(1)?,
                held: count(4)?,
                oldest,
                kept: count(3)?,
                worst: Vec::new(),
            };
            if status.failing > 0 {
                let sql = format!(
                    "SELECT seq, id, destination, attempts, coalesce(error, '') FROM {schema}.outbox \
                     WHERE published_at IS NULL AND attempts > 0 ORDER BY attempts DESC, seq LIMIT $1"
                );
                for row in query(AssertSqlSafe(sql)).bind(WORST).fetch_all(conn).await? {
                    status.worst.push(FailingRow {
                        seq: row.try_get(0)?,
                        id: row.try_get(1)?,
                        destination: row.try_get(2)?,
                        attempts: u32::try_from(row.try_get::<i32, _>(3)?).unwrap_or(0),
                        error: row.try_get(4)?,
                    });
                }
            }
            Ok(status)
        })
    });
    asked.await.map_err(|error| error.into_error(READ))
}
