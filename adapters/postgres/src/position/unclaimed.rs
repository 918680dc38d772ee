//! Keys that are completed by their effect's transaction, without a claim before: [`mark_keys`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use onceward::store::transition::{Moment, Record, micros};
use onceward::store::{KeyMark, MarkedKey};
use onceward::{Error, Key};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row, query};

use crate::connection::PgConn;
use crate::error::{row_removed, store_error};
use crate::operators::{BYTEAS, EQ, PLUS};
use crate::row::{self, COLUMNS, NOW, integer};
use crate::session::moment;

pub(crate) const MARK_KEYS: &str = "complete keys with their effects";

/// Answers in the order of `marks`. After an error the transaction is rolled back.
///
/// Every transaction does this before anything else, and writes its keys in their order: so no two wait for each other here.
pub(crate) async fn mark_keys(
    schema: Arc<str>,
    mut open: PgConn,
    scope: i64,
    ttl: Duration,
    marks: Vec<KeyMark>,
) -> Result<(PgConn, Vec<MarkedKey>), Error> {
    let mut sorted = marks.clone();
    sorted.sort_unstable_by_key(|mark| mark.key);
    let found = match mark_all(open.connection(), &schema, scope, ttl, &sorted).await {
        Ok(found) => found,
        Err(error) => {
            open.end().await;
            return Err(error);
        }
    };
    let answers = marks.iter().map(|mark| found.get(&mark.key).copied().unwrap_or(MarkedKey::Fresh));
    Ok((open, answers.collect()))
}

/// What is known of keys; the others are fresh.
async fn mark_all(
    conn: &mut PgConnection,
    schema: &str,
    scope: i64,
    ttl: Duration,
    sorted: &[KeyMark],
) -> Result<HashMap<Key, MarkedKey>, Error> {
    let failed = |error| store_error(MARK_KEYS, error);
    let new = insert(conn, schema, scope, ttl, sorted).await.map_err(failed)?;
    let mut known = sorted.iter().filter(|mark| !new.contains(&mark.key)).copied().collect::<Vec<_>>();
    if known.is_empty() {
        return Ok(HashMap::new());
    }
    // Most of them are completed, and stay so: their rows are read without a lock, or duplicates would wait for each other.
    let rows = read(conn, schema, scope, &known).await.map_err(failed)?;
    let mut answers = decide(&rows, ttl, &known)?;
    known.retain(|mark| answers.get(&mark.key).is_none_or(|(_, changed)| changed.is_some()));
    if !known.is_empty() {
        let keys: Vec<_> = known.iter().map(|mark| mark.key).collect();
        let rows = row::lock(conn, schema, scope, &keys, "").await.map_err(failed)?;
        let at = moment(conn, schema).await.map_err(failed)?;
        let rows = rows.into_iter().map(|row| (row, at)).collect::<Vec<_>>();
        let decided = decide(&rows, ttl, &known)?;
        if decided.len() < known.len() {
            // A purge took a row between the two statements.
            return Err(failed(row_removed()));
        }
        let changed: Vec<_> =
            decided.iter().filter_map(|(key, (_, record))| Some((*key, record.as_ref()?))).collect();
        if !changed.is_empty() {
            row::write(conn, schema, scope, &changed, at.now, true).await.map_err(failed)?;
        }
        answers.extend(decided);
    }
    Ok(answers.into_iter().map(|(key, (answer, _))| (key, answer)).collect())
}

/// Writes completions where there is no row. Where another transaction has written one that is not committed yet, its end is
/// waited for.
async fn insert(
    conn: &mut PgConnection,
    schema: &str,
    scope: i64,
    ttl: Duration,
    sorted: &[KeyMark],
) -> Result<HashSet<Key>, sqlx::Error> {
    let sql = format!(
        "INSERT INTO {schema}.keys (scope, fence, lease_until, first_at, written_at, ttl, expires_at, attempts, lost, \
         generation, state, started, key, owner, fingerprint) \
         SELECT $1, greatest(now, floor {PLUS} 1), 0, now, now, $2, now {PLUS} $2, 0, 0, 0, 4, false, k, o, f \
         FROM (SELECT {NOW} AS now, value AS floor FROM {schema}.meta WHERE name {EQ} 'fence_floor' OFFSET 0) AS at, \
         unnest($3::{BYTEAS}, $4::{BYTEAS}, $5::{BYTEAS}) AS given (k, o, f) \
         ORDER BY k ON CONFLICT DO NOTHING RETURNING key"
    );
    let rows = query(AssertSqlSafe(sql))
        .bind(scope)
        .bind(integer(micros(ttl)))
        .bind(row::key_bytes(sorted.iter().map(|mark| &mark.key)))
        .bind(row::owner_bytes(sorted.iter().map(|mark| &mark.owner)))
        .bind(row::fingerprint_bytes(sorted.iter().map(|mark| &mark.fingerprint)))
        .fetch_all(conn)
        .await?;
    rows.iter().map(row::key_of).collect()
}

/// Rows as they are, each with the time.
async fn read(
    conn: &mut PgConnection,
    schema: &str,
    scope: i64,
    known: &[KeyMark],
) -> Result<Vec<(PgRow, Moment)>, sqlx::Error> {
    let sql = format!(
        "SELECT {COLUMNS}, {NOW} AS now FROM {schema}.keys WHERE scope {EQ} $1 AND key {EQ} ANY ($2::{BYTEAS})"
    );
    let keys = row::key_bytes(known.iter().map(|mark| &mark.key));
    let rows = query(AssertSqlSafe(sql)).bind(scope).bind(keys).fetch_all(conn).await?;
    let dated = |row: PgRow| {
        let now = u64::try_from(row.try_get::<i64, _>("now")?).unwrap_or(0);
        // No fence is given out by what is only read.
        Ok((row, Moment { now, fence_floor: 0 }))
    };
    rows.into_iter().map(dated).collect()
}

/// Each key's answer, with its record if that is to be written.
type Decided = HashMap<Key, (MarkedKey, Option<Record>)>;

fn decide(rows: &[(PgRow, Moment)], ttl: Duration, known: &[KeyMark]) -> Result<Decided, Error> {
    let marks: HashMap<_, _> = known.iter().map(|mark| (mark.key, mark)).collect();
    let mut decided = Decided::with_capacity(rows.len());
    for (found, at) in rows {
        let key = row::key_of(found).map_err(|error| store_error(MARK_KEYS, error))?;
        let Some(mark) = marks.get(&key) else { continue };
        let mut record = row::record_of(found)?;
        let step = record.mark(*at, ttl, mark);
        decided.insert(key, (step.answer, step.changed.then_some(record)));
    }
    Ok(decided)
}
