//! Takes rows for a relay: rows leased to it by a token, with a deadline that it extends while it works.
//!
//! Only the oldest unpublished row of an order key is leased, and its lease covers the whole key: no other relay takes the rows
//! after it, since they are not the oldest. SQLite numbers rows in commit order, since only one connection can write.

use std::collections::VecDeque;
use std::time::Duration;

use onceward::Error;
use onceward::outbox::{Head, KeyTurns, OutboxRow, TakeLimits};
use onceward::store::Entropy;
use onceward::store::transition::micros;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row, query};

use super::leased_rows::{LEASE, LeasedRows};
use super::rows::{COLUMNS, DamagedRow, DecodedRow, decode_row, seq_list};
use crate::error::store_error;
use crate::reader::READ;
use crate::row::integer;
use crate::store::SqliteStore;
use crate::writer::Writer;

const TAKE: &str = "take rows of the outbox";
/// The maximum delay before an unreadable row is read again.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// The oldest rows of order keys that are due; `None` if no row is due, with an order key or without. It only reads, so that an
/// idle relay blocks no writer.
pub(super) async fn due(
    store: &SqliteStore,
    turns: &KeyTurns,
    limits: &TakeLimits,
) -> Result<Option<Vec<i64>>, Error> {
    let now = integer(store.writer().now());
    let heads = turns.due(limits.rows as usize, |after, steps| walk(store, now, after, steps)).await?;
    if !heads.is_empty() {
        return Ok(Some(heads));
    }
    let lone = query(
        "SELECT 1 FROM onceward_outbox WHERE published_at IS NULL AND order_key IS NULL \
         AND next_at <= ?1 AND taken_until <= ?1 LIMIT 1",
    );
    let found = store.reader().lock().await?.fetch(lone.bind(now)).await?;
    Ok((!found.is_empty()).then_some(heads))
}

/// The next order keys after `after`, by a loose index scan: one step per key, however many rows it has.
async fn walk(store: &SqliteStore, now: i64, after: Vec<u8>, steps: usize) -> Result<Vec<Head>, Error> {
    let walked = query(
        "WITH RECURSIVE walk (order_key, steps) AS (\
           SELECT (SELECT o.order_key FROM onceward_outbox o WHERE o.published_at IS NULL AND o.order_key > ?1 \
             ORDER BY o.order_key LIMIT 1), 1 \
           UNION ALL \
           SELECT (SELECT o.order_key FROM onceward_outbox o WHERE o.published_at IS NULL AND o.order_key > walk.order_key \
             ORDER BY o.order_key LIMIT 1), walk.steps + 1 \
           FROM walk WHERE walk.order_key IS NOT NULL AND walk.steps < ?2), \
         heads (order_key, steps, seq) AS (\
           SELECT walk.order_key, walk.steps, (SELECT o.seq FROM onceward_outbox o WHERE o.published_at IS NULL \
             AND o.order_key = walk.order_key ORDER BY o.seq LIMIT 1) \
           FROM walk WHERE walk.order_key IS NOT NULL) \
         SELECT heads.order_key, head.seq, head.next_at <= ?3 AND head.taken_until <= ?3 \
         FROM heads JOIN onceward_outbox head ON head.seq = heads.seq ORDER BY heads.steps",
    );
    let walked = walked.bind(after).bind(i64::try_from(steps).unwrap_or(i64::MAX)).bind(now);
    let rows = store.reader().lock().await?.fetch(walked).await?;
    let head =
        |row: &SqliteRow| Ok(Head { order_key: row.try_get(0)?, seq: row.try_get(1)?, due: row.try_get(2)? });
    rows.iter().map(head).collect::<Result<_, _>>().map_err(|error| store_error(READ, error))
}

/// See [`OutboxStore::take`](onceward::outbox::OutboxStore::take).
pub(super) async fn take(
    writer: Writer,
    due: &[i64],
    limits: &TakeLimits,
) -> Result<Option<(LeasedRows, Vec<OutboxRow>)>, Error> {
    let failed = |error| store_error(TAKE, error);
    let token = Entropy::system().token();
    let mut slot = writer.turn().await;
    slot.begin().await.map_err(failed)?;
    let taken = match slot.conn().await {
        Ok(conn) => lease_rows(conn, &writer, due, limits, token.as_bytes()).await,
        Err(error) => Err(error),
    };
    let (heads, rows) = slot.finish(taken).await.map_err(failed)?;
    drop(slot);
    Ok((!rows.is_empty()).then(|| (LeasedRows::new(writer, token, heads), rows)))
}

/// Leases rows that no other relay has leased, and reads them and the rows after them, up to the limits.
async fn lease_rows(
    conn: &mut SqliteConnection,
    writer: &Writer,
    due: &[i64],
    limits: &TakeLimits,
    token: &[u8],
) -> Result<(Vec<i64>, Vec<OutboxRow>), sqlx::Error> {
    let time = writer.time(&mut *conn).await?;
    let (now, until) = (integer(time), integer(time.saturating_add(micros(LEASE))));
    let mut runs = unkeyed_runs(conn, limits, now).await?;
    runs.extend(keyed_runs(conn, due, limits, now).await?);
    let (heads, seqs) = within_bytes(runs, limits.bytes);
    query("UPDATE onceward_outbox SET taken_by = ?, taken_until = ? WHERE seq IN (SELECT value FROM json_each(?))")
        .bind(token)
        .bind(until)
        .bind(seq_list(&heads))
        .execute(&mut *conn)
        .await?;
    let sql = format!(
        "SELECT {COLUMNS} FROM onceward_outbox WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq"
    );
    let found = query(AssertSqlSafe(sql)).bind(seq_list(&seqs)).fetch_all(&mut *conn).await?;
    let (mut rows, mut unreadable) = (Vec::with_capacity(found.len()), Vec::new());
    for row in &found {
        match decode_row(row)? {
            DecodedRow::Row(row) => {
                let key = row.message.order_key.as_deref();
                // Rows after an unreadable one of their order key wait for it.
                let is_held = |bad: &DamagedRow| bad.order_key.is_some() && bad.order_key.as_deref() == key;
                if !unreadable.iter().any(is_held) {
                    rows.push(row);
                }
            }
            DecodedRow::Damaged(bad) => unreadable.push(bad),
        }
    }
    for bad in unreadable.iter().filter(|bad| heads.contains(&bad.seq)) {
        fail_unreadable(&mut *conn, bad, time).await?;
    }
    let heads = heads.into_iter().filter(|head| unreadable.iter().all(|bad| bad.seq != *head)).collect();
    Ok((heads, rows))
}

/// Records an unreadable row as failed, with a delay as for one that cannot be published.
async fn fail_unreadable(conn: &mut SqliteConnection, bad: &DamagedRow, now: u64) -> Result<(), sqlx::Error> {
    let pause = MAX_DELAY.min(Duration::from_secs(1 << bad.attempts.min(10)));
    tracing::warn!(
        seq = bad.seq,
        attempts = bad.attempts + 1,
        "outbox row unreadable: {}; correct or delete it",
        bad.what
    );
    query(
        "UPDATE onceward_outbox SET attempts = attempts + 1, next_at = ?, error = ?, taken_by = NULL, taken_until = 0 \
         WHERE seq = ?",
    )
    .bind(integer(now.saturating_add(micros(pause))))
    .bind(format!("the row cannot be read: {}; correct or delete it", bad.what))
    .bind(bad.seq)
    .execute(conn)
    .await
    .map(drop)
}

/// Consecutive rows of one order key, each with the size of its payload.
type Run = VecDeque<(i64, u64)>;

fn sized(row: &SqliteRow) -> Result<(i64, u64), sqlx::Error> {
    Ok((row.try_get(0)?, u64::try_from(row.try_get::<i64, _>(1)?).unwrap_or(0)))
}

/// Due rows without an order key, each as its own run.
async fn unkeyed_runs(
    conn: &mut SqliteConnection,
    limits: &TakeLimits,
    now: i64,
) -> Result<Vec<Run>, sqlx::Error> {
    let found = query(
        "SELECT seq, length(payload) FROM onceward_outbox WHERE published_at IS NULL AND order_key IS NULL \
         AND next_at <= ?1 AND taken_until <= ?1 ORDER BY next_at, seq LIMIT ?2",
    );
    let found = found.bind(now).bind(i64::from(limits.rows)).fetch_all(conn).await?;
    found.iter().map(|row| Ok(Run::from([sized(row)?]))).collect()
}

/// The runs of the heads that are still due. An unpublished head is still the oldest of its key.
async fn keyed_runs(
    conn: &mut SqliteConnection,
    heads: &[i64],
    limits: &TakeLimits,
    now: i64,
) -> Result<Vec<Run>, sqlx::Error> {
    let still = query(
        "SELECT order_key FROM onceward_outbox WHERE seq IN (SELECT value FROM json_each(?1)) \
         AND published_at IS NULL AND next_at <= ?2 AND taken_until <= ?2 ORDER BY seq",
    );
    let still = still.bind(seq_list(heads)).bind(now).fetch_all(&mut *conn).await?;
    let mut runs = Vec::with_capacity(still.len());
    for head in &still {
        let run = query(
            "SELECT seq, length(payload) FROM onceward_outbox WHERE published_at IS NULL AND order_key = ? \
             ORDER BY seq LIMIT ?",
        );
        let key: &[u8] = head.try_get(0)?;
        let run = run.bind(key).bind(i64::from(limits.per_key)).fetch_all(&mut *conn).await?;
        runs.push(run.iter().map(sized).collect::<Result<_, _>>()?);
    }
    Ok(runs)
}

/// The heads of runs and all rows that fit the byte limit, the first of each run before the second of any.
fn within_bytes(mut runs: Vec<Run>, limit: u64) -> (Vec<i64>, Vec<i64>) {
    let (mut heads, mut seqs, mut bytes) = (Vec::new(), Vec::new(), 0_u64);
    let mut place = 0;
    while !runs.is_empty() {
        for run in &mut runs {
            let Some((seq, size)) = run.pop_front() else { continue };
            bytes = bytes.saturating_add(size);
            if bytes > limit && !seqs.is_empty() {
                // No later row either: it may have the same key.
                return (heads, seqs);
            }
            if place == 0 {
                heads.push(seq);
            }
            seqs.push(seq);
        }
        runs.retain(|run| !run.is_empty());
        place += 1;
    }
    (heads, seqs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_run_comes_before_the_second_of_any_and_a_large_one_comes_alone() {
        let runs =
            || vec![Run::from([(1, 4)]), Run::from([(2, 4), (5, 4), (6, 4)]), Run::from([(3, 4), (4, 4)])];
        assert_eq!(within_bytes(runs(), 100), (vec![1, 2, 3], vec![1, 2, 3, 5, 4, 6]));
        assert_eq!(within_bytes(runs(), 19), (vec![1, 2, 3], vec![1, 2, 3, 5]));
        assert_eq!(within_bytes(runs(), 8), (vec![1, 2], vec![1, 2]));
        assert_eq!(within_bytes(runs(), 0), (vec![1], vec![1]));
        assert_eq!(within_bytes(Vec::new(), 8), (vec![], vec![]));
    }
}
