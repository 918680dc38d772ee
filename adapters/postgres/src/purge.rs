//! Removes expired rows, a few at a time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use onceward::Error;
use sqlx::{AssertSqlSafe, Executor, Row, query};

use crate::row;
use crate::session::{CallOptions, READ, Sessions, WRITE};

/// Keeps the rows whose fence a claim that is under way could still fall short of. A claim reads clock and floor at its
/// beginning, and an insert of a key whose row is removed meanwhile goes on with what it read. A fence is as old as its
/// claim, and an expired record older than any statement runs, unless the clock was set back, or the key was forgotten a
/// moment ago (`written_at` 0): those rows stay until no statement can be as old as they are.
const STALE: &str = "AND fence < (SELECT now FROM at) - CASE written_at WHEN 0 THEN 3600000000 ELSE 0 END";

/// One cleaner at a time: while another worker purges, this answers 0. Rows that are in use are passed over.
pub(crate) async fn purge(sessions: &Sessions, limit: u32) -> Result<u64, Error> {
    let schema = sessions.schema.clone();
    // What this worker has removed just now lies at the beginning of the index until that is vacuumed: not to be walked over
    // again with each batch.
    let from = sessions.purged_to.load(Ordering::Relaxed);
    let (removed, last) = sessions
        .run_with_retry(CallOptions::from(WRITE).replies(6).transaction(), false, move |conn| {
            let schema = schema.clone();
            Box::pin(async move {
                conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
                // A row of the schema, which no stranger can lock.
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
    // The pass ends where less than a batch is left; the next one finds what was in use or came late.
    let to = if removed < u64::from(limit) { 0 } else { last.unwrap_or(0) };
    sessions.purged_to.store(to, Ordering::Relaxed);
    Ok(removed)
}

/// How long ago the oldest row expired that may be removed and is not.
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
    // A row that expires in this microsecond is late all the same.
    Ok(lag.map_or(Duration::ZERO, |lag| Duration::from_micros(u64::try_from(lag).unwrap_or(0).max(1))))
}
