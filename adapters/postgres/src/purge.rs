//! Removes expired rows in small batches.

use std::sync::atomic::Ordering;
use std::time::Duration;

use onceward::Error;
use sqlx::{AssertSqlSafe, Executor, Row, query};

use crate::row;
use crate::session::{CallOptions, READ, Sessions, WRITE};

/// Keeps rows whose fence could still exceed that of a claim in progress. A claim reads the clock and the floor when it starts,
/// and its insert uses these values even if the row is removed in the meantime. An expired record is normally older than any
/// running statement; not so if the clock was set back, or the key was forgotten recently (`written_at` 0). Such rows are
/// kept until no statement can be as old.
const STALE: &str = "AND fence < (SELECT now FROM at) - CASE written_at WHEN 0 THEN 3600000000 ELSE 0 END";

/// Removes at most `limit` rows, and returns their number: 0 while another worker purges. Locked rows are skipped.
pub(crate) async fn purge(sessions: &Sessions, limit: u32) -> Result<u64, Error> {
    let schema = sessions.schema.clone();
    // Rows that this worker removed stay at the beginning of the index until it is vacuumed; later batches start after them.
    let from = sessions.purged_to.load(Ordering::Relaxed);
    let (removed, last) = sessions
        .run_with_retry(CallOptions::from(WRITE).replies(6).transaction(), false, move |conn| {
            let schema = schema.clone();
            Box::pin(async move {
                conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
                // A row of the schema, which only roles with rights on the table can lock.
                let turn =
                    format!("SELECT 1 FROM {schema}.meta WHERE name = 'purge' FOR UPDATE SKIP LOCKED");
                let turn = query(AssertSqlSafe(turn)).fetch_optional(&mut *conn).await?;
                let mut removed = (0, None);
                if turn.is_some() {
                    let sql = format!(
                        "WITH at AS MATERIALIZED (SELECT {} AS now), \
                         gone AS (DELETE FROM {schema}.keys WHERE (scope, key) IN \
                           (SELECT scope, key FROM {schema}.keys WHERE expires_at >= $2 \
                              AND expires_at <= (SELECT now FROM at) {STALE} \
                            ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING fence, expires_at), \
                         raised AS (UPDATE {schema}.meta SET value = greatest(value, (SELECT max(fence) FROM gone)) \
                           WHERE name = 'fence_floor' AND value < (SELECT max(fence) FROM gone)) \
                         SELECT count(*), max(expires_at) FROM gone",
                        row::NOW
                    );
                    let statement = query(AssertSqlSafe(sql)).bind(i64::from(limit)).bind(from);
                    let row = statement.fetch_one(&mut *conn).await?;
                    removed = (row.try_get::<i64, _>(0)?, row.try_get::<Option<i64>, _>(1)?);
                }
                conn.execute("COMMIT").await?;
                Ok(removed)
            })
        })
        .await
        .map_err(|error| error.into_error(WRITE))?;
    let removed = u64::try_from(removed).unwrap_or(0);
    // An incomplete batch ends the pass; the next one starts over, and finds rows that were locked or came late.
    let to = if removed < u64::from(limit) { 0 } else { last.unwrap_or(0) };
    sessions.purged_to.store(to, Ordering::Relaxed);
    Ok(removed)
}

/// The time since the oldest removable row expired.
pub(crate) async fn lag(sessions: &Sessions) -> Result<Duration, Error> {
    let schema = sessions.schema.clone();
    let asked = sessions.run_with_retry(READ, true, move |conn| {
        let schema = schema.clone();
        Box::pin(async move {
            let sql = format!(
                "WITH at AS MATERIALIZED (SELECT {} AS now) \
                 SELECT (SELECT now FROM at) - (SELECT expires_at FROM {schema}.keys \
                   WHERE expires_at <= (SELECT now FROM at) {STALE} ORDER BY expires_at LIMIT 1)",
                row::NOW
            );
            query(AssertSqlSafe(sql)).fetch_one(conn).await?.try_get::<Option<i64>, _>(0)
        })
    });
    let lag = asked.await.map_err(|error| error.into_error(READ))?;
    // A row that expires in this microsecond counts as late.
    Ok(lag.map_or(Duration::ZERO, |lag| Duration::from_micros(u64::try_from(lag).unwrap_or(0).max(1))))
}
