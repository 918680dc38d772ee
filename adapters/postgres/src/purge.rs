//! Removes expired rows.

use onceward::Error;
use sqlx::{AssertSqlSafe, Executor, Row, query};

use crate::link::{Link, WRITE};
use crate::row;

/// Keeps the rows whose fence a claim that is under way could still fall short of. A claim reads clock and floor at its
/// beginning, and an insert of a key whose row is removed meanwhile goes on with what it read. A fence is as old as its
/// claim, and an expired record older than any statement runs, unless the clock was set back, or the key was forgotten a
/// moment ago (`written_at` 0): those rows stay until no statement can be as old as they are.
const STALE: &str = "AND fence < (SELECT now FROM at) - CASE written_at WHEN 0 THEN 3600000000 ELSE 0 END";

/// One cleaner at a time: while another worker purges, this answers 0. Rows that are in use are passed over.
pub(crate) async fn purge(link: &Link, limit: u32) -> Result<u64, Error> {
    let schema = link.schema.clone();
    link
        .run_again(WRITE, false, move |conn| {
            let schema = schema.clone();
            Box::pin(async move {
                conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
                let turn = query("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 7))")
                    .bind(format!("onceward purge {schema}"))
                    .fetch_one(&mut *conn)
                    .await?;
                let mut removed = 0;
                if turn.try_get(0)? {
                    let sql = format!(
                        "WITH at AS MATERIALIZED (SELECT {} AS now), \
                         gone AS (DELETE FROM {schema}.keys WHERE (scope, key) IN \
                           (SELECT scope, key FROM {schema}.keys WHERE expires_at <= (SELECT now FROM at) {STALE} \
                            ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING fence), \
                         raised AS (UPDATE {schema}.meta SET value = greatest(value, (SELECT max(fence) FROM gone)) \
                           WHERE name = 'fence_floor' AND value < (SELECT max(fence) FROM gone)) \
                         SELECT count(*) FROM gone",
                        row::NOW
                    );
                    let row =
                        query(AssertSqlSafe(sql)).bind(i64::from(limit)).fetch_one(&mut *conn).await?;
                    removed = u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0);
                }
                conn.execute("COMMIT").await?;
                Ok(removed)
            })
        })
        .await
        .map_err(|attempt| attempt.told(WRITE))
}
