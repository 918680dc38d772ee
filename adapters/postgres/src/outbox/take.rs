//! Takes rows for a relay and settles them: rows are locked in a transaction that stays open while they are published.
//!
//! Only the oldest unpublished row of an order key is locked, and its lock covers the whole key: no other relay takes the rows
//! after it, since they are not the oldest. The order is correct because a trigger numbers the rows of one order key in commit
//! order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use onceward::Error;
use onceward::outbox::{Head, KeyTurns, OutboxRow, RowOutcome, TakeLimits};
use onceward::retry::{Backoff, Jitter};
use onceward::store::transition::micros;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row, query};

use super::rows::{COLUMNS, UnreadableRow, row_of};
use crate::connection::PgConn;
use crate::error::store_error;
use crate::guard::within;
use crate::row::{NOW, integer, storable};
use crate::session::{READ, SessionError, Sessions};
use crate::store::PgStore;

const TAKE: &str = "take rows of the outbox";
const SETTLE: &str = "record the outcome of outbox rows";

/// The server ends a transaction that is idle for longer: its relay hangs, and others may take the rows.
const MAX_PUBLISH_TIME: &str = "30s";

/// See [`OutboxStore::take`](onceward::outbox::OutboxStore::take).
pub(super) async fn take(
    store: &PgStore,
    turns: &KeyTurns,
    limits: &TakeLimits,
) -> Result<Option<(PgConn, Vec<OutboxRow>)>, Error> {
    let schema = store.schema();
    let heads = turns.due(limits.rows as usize, |after, steps| walk(store, after, steps)).await;
    let heads = heads.map_err(|error| error.into_error(READ))?;
    let sessions = store.sessions();
    loop {
        let taking = async {
            let mut open =
                PgConn::begin_plain(&sessions.pool).await.map_err(|error| store_error(TAKE, error))?;
            let rows = lock_rows(open.connection(), &schema, &heads, limits).await;
            Ok((open, rows.map_err(|error| store_error(TAKE, error))?))
        };
        let (open, rows) = within(sessions.patience * REPLIES, TAKE, taking).await?;
        if rows.is_empty() {
            open.end().await;
            return Ok(None);
        }
        let (rows, unreadable) = partition_readable(rows);
        if unreadable.is_empty() {
            return Ok(Some((open, rows)));
        }
        // They are recorded as failed, and no longer due: the next pass takes the other rows.
        fail_unreadable(sessions, schema.clone(), open, unreadable).await?;
    }
}

/// Replies of the server at most to take rows, or to record their outcome.
const REPLIES: u32 = 6;

/// Separates rows that can be published from unreadable ones. An unreadable row blocks the rows after it in its order key, and is
/// recorded once it is the oldest of its key, since only the oldest row's delay counts.
fn partition_readable(found: Vec<Result<OutboxRow, UnreadableRow>>) -> (Vec<OutboxRow>, Vec<UnreadableRow>) {
    let (mut rows, mut unreadable) = (Vec::new(), Vec::new());
    // The order keys seen so far, and whether an unreadable row blocks them.
    let mut blocked: HashMap<Vec<u8>, bool> = HashMap::new();
    for row in found {
        match row {
            Ok(row) => {
                match row.message.order_key.as_ref().map(|key| blocked.entry(key.to_vec()).or_insert(false)) {
                    Some(true) => {}
                    Some(false) | None => rows.push(row),
                }
            }
            Err(row) => {
                let known = row.order_key.clone().and_then(|key| blocked.insert(key, true));
                if known.is_none() {
                    unreadable.push(row);
                }
            }
        }
    }
    (rows, unreadable)
}

/// Records unreadable rows as failed. Each blocks the rows after it in its order key, and no others.
async fn fail_unreadable(
    sessions: &Sessions,
    schema: Arc<str>,
    mut open: PgConn,
    rows: Vec<UnreadableRow>,
) -> Result<(), Error> {
    if let Some(UnreadableRow { seq, attempts, what, .. }) = rows.first() {
        let (attempts, others) = (attempts.saturating_add(1), rows.len() - 1);
        tracing::warn!(seq, attempts, others, what, "outbox row unreadable; correct or delete it");
    }
    let outcomes: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let retry_in =
                UNREADABLE.delay(row.attempts.saturating_add(1), Duration::ZERO, &mut fastrand::Rng::new());
            (row.seq, RowOutcome::Failed { retry_in, error: format!("unreadable: {}", row.what) })
        })
        .collect();
    let narrow = sessions.pool.is_narrow();
    let recording = async {
        record_outcomes(open.connection(), &schema, &outcomes, narrow)
            .await
            .map_err(|error| store_error(SETTLE, error))?;
        open.commit_plain(sessions.patience).await.map_err(|error| store_error(SETTLE, error))
    };
    within(sessions.patience * REPLIES, SETTLE, recording).await
}

/// The delay before an unreadable row is read again: it may have been corrected.
const UNREADABLE: Backoff =
    Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(60), jitter: Jitter::Equal };

/// The next order keys after `after`, by a loose index scan: one step per key, however many rows it has.
async fn walk(store: &PgStore, after: Vec<u8>, steps: usize) -> Result<Vec<Head>, SessionError> {
    let (schema, steps) = (store.schema(), i32::try_from(steps).unwrap_or(i32::MAX));
    let walked = store.sessions().run_with_retry(READ, true, move |conn| {
        let (schema, after) = (schema.clone(), after.clone());
        Box::pin(async move {
            let next = |behind: &str| {
                format!(
                    "SELECT o.order_key FROM {schema}.outbox o WHERE o.published_at IS NULL \
                     AND o.order_key > {behind} ORDER BY o.order_key LIMIT 1"
                )
            };
            let sql = format!(
                "WITH RECURSIVE walk (order_key, steps) AS (\
                   (SELECT ({}), 1) UNION ALL \
                   SELECT ({}), w.steps + 1 FROM walk w WHERE w.order_key IS NOT NULL AND w.steps < $2) \
                 SELECT walk.order_key, head.seq, head.next_at <= (SELECT {NOW} OFFSET 0) AS due FROM walk \
                 CROSS JOIN LATERAL (SELECT o.seq, o.next_at FROM {schema}.outbox o WHERE o.published_at IS NULL \
                   AND o.order_key = walk.order_key ORDER BY o.seq LIMIT 1) AS head \
                 ORDER BY walk.steps",
                next("$1"),
                next("w.order_key")
            );
            let rows = query(AssertSqlSafe(sql)).bind(after).bind(steps).fetch_all(conn).await?;
            let head = |row: &PgRow| {
                Ok(Head { order_key: row.try_get(0)?, seq: row.try_get(1)?, due: row.try_get(2)? })
            };
            rows.iter().map(head).collect()
        })
    });
    walked.await
}

/// Locks rows that no other relay has locked, and reads them and the rows after them, up to the limits.
async fn lock_rows(
    conn: &mut PgConnection,
    schema: &str,
    heads: &[i64],
    limits: &TakeLimits,
) -> Result<Vec<Result<OutboxRow, UnreadableRow>>, sqlx::Error> {
    conn.execute(AssertSqlSafe(format!(
        "SET LOCAL idle_in_transaction_session_timeout = '{MAX_PUBLISH_TIME}'"
    )))
    .await?;
    let lone = format!(
        "SELECT seq, NULL::bytea AS order_key FROM {schema}.outbox WHERE published_at IS NULL \
         AND order_key IS NULL AND next_at <= (SELECT {NOW} OFFSET 0) ORDER BY next_at, seq LIMIT $1 \
         FOR UPDATE SKIP LOCKED"
    );
    let mut found = query(AssertSqlSafe(lone)).bind(i64::from(limits.rows)).fetch_all(&mut *conn).await?;
    if !heads.is_empty() {
        // Under the lock they are known to be still unpublished, and so each is still the oldest of its key.
        let keyed = format!(
            "SELECT seq, order_key FROM {schema}.outbox WHERE seq = ANY($1) AND published_at IS NULL \
             AND next_at <= (SELECT {NOW} OFFSET 0) ORDER BY seq FOR UPDATE SKIP LOCKED"
        );
        found.extend(query(AssertSqlSafe(keyed)).bind(heads).fetch_all(&mut *conn).await?);
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let (mut lone, mut keys) = (Vec::new(), Vec::new());
    for row in &found {
        match row.try_get::<Option<Vec<u8>>, _>(1)? {
            None => lone.push(row.try_get::<i64, _>(0)?),
            Some(key) => keys.push(key),
        }
    }
    let seqs = within_bytes(conn, schema, &lone, &keys, limits).await?;
    let sql = format!("SELECT {COLUMNS} FROM {schema}.outbox WHERE seq = ANY($1) ORDER BY seq");
    let rows = query(AssertSqlSafe(sql)).bind(seqs).fetch_all(conn).await?;
    rows.iter().map(row_of).collect()
}

/// The rows that fit the byte limit: the first of each key before the second of any.
async fn within_bytes(
    conn: &mut PgConnection,
    schema: &str,
    lone: &[i64],
    keys: &[Vec<u8>],
    limits: &TakeLimits,
) -> Result<Vec<i64>, sqlx::Error> {
    let sql = format!(
        "SELECT seq, 1::bigint AS place, octet_length(payload) AS size FROM {schema}.outbox WHERE seq = ANY($1) \
         UNION ALL \
         SELECT run.* FROM unnest($2::bytea[]) AS given (key) CROSS JOIN LATERAL (\
           SELECT seq, row_number() OVER (ORDER BY seq) AS place, octet_length(payload) FROM {schema}.outbox o \
           WHERE o.order_key = given.key AND o.published_at IS NULL ORDER BY seq LIMIT $3) AS run \
         ORDER BY place, seq"
    );
    let rows = query(AssertSqlSafe(sql))
        .bind(lone)
        .bind(keys)
        .bind(i64::from(limits.per_key))
        .fetch_all(conn)
        .await?;
    let (mut seqs, mut bytes) = (Vec::new(), 0_u64);
    for row in &rows {
        bytes += u64::try_from(row.try_get::<i32, _>("size")?).unwrap_or(0);
        if bytes > limits.bytes && !seqs.is_empty() {
            // No later row either: it may have the same key.
            break;
        }
        seqs.push(row.try_get("seq")?);
    }
    Ok(seqs)
}

/// See [`OutboxStore::settle`](onceward::outbox::OutboxStore::settle).
pub(super) async fn settle(
    schema: Arc<str>,
    mut taken: PgConn,
    outcomes: Vec<(i64, RowOutcome)>,
    patience: Duration,
    narrow: bool,
) -> Result<(), Error> {
    let settling = async {
        record_outcomes(taken.connection(), &schema, &outcomes, narrow)
            .await
            .map_err(|error| store_error(SETTLE, error))?;
        taken.commit_plain(patience).await.map_err(|error| store_error(SETTLE, error))
    };
    within(patience * REPLIES, SETTLE, settling).await
}

async fn record_outcomes(
    conn: &mut PgConnection,
    schema: &str,
    outcomes: &[(i64, RowOutcome)],
    narrow: bool,
) -> Result<(), sqlx::Error> {
    let mut published = Vec::new();
    let (mut failed, mut delays, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for (seq, outcome) in outcomes {
        match outcome {
            RowOutcome::Published => published.push(*seq),
            RowOutcome::Failed { retry_in, error } => {
                failed.push(*seq);
                delays.push(integer(micros(*retry_in)));
                errors.push(storable(error, narrow));
            }
        }
    }
    if !published.is_empty() {
        let sql = format!(
            "UPDATE {schema}.outbox SET published_at = (SELECT {NOW} OFFSET 0), error = NULL WHERE seq = ANY($1)"
        );
        query(AssertSqlSafe(sql)).bind(published).execute(&mut *conn).await?;
    }
    if !failed.is_empty() {
        let sql = format!(
            "UPDATE {schema}.outbox AS o SET attempts = attempts + 1, next_at = {NOW} + delays.d, error = left(delays.e, 1024) \
             FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS delays (s, d, e) \
             WHERE o.seq = ANY($1) AND o.seq = delays.s"
        );
        query(AssertSqlSafe(sql)).bind(failed).bind(delays).bind(errors).execute(conn).await?;
    }
    Ok(())
}
