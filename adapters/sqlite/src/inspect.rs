//! Reads records of keys for inspection; changes nothing.

use onceward::store::transition::Moment;
use onceward::store::{KeyRecord, KeyState, KeyStats, ListQuery};
use onceward::{Error, Key, Scope};
use sqlx::{AssertSqlSafe, Row, query};

use crate::error::store_error;
use crate::reader::{READ, SqliteReader};
use crate::row;
use crate::writer::Writer;

/// The time at which expiry is judged. No fence is given out by a read.
fn now(writer: &Writer) -> Moment {
    Moment { now: writer.now(), fence_floor: 0 }
}

/// The record of a key, if there is an unexpired one.
pub(crate) async fn inspect(
    reader: &SqliteReader,
    writer: &Writer,
    scope: &Scope,
    key: &Key,
) -> Result<Option<KeyRecord>, Error> {
    let sql = AssertSqlSafe(format!(
        "SELECT {} FROM onceward_keys \
         WHERE scope = (SELECT id FROM onceward_scopes WHERE name = ?) AND key = ?",
        row::COLUMNS
    ));
    let statement = query(sql).bind(scope.as_str()).bind(key.as_bytes().as_slice());
    let rows = reader.lock().await?.fetch(statement).await?;
    let record = rows.first().map(row::record_of).transpose()?;
    Ok(record.and_then(|record| record.view(*key, now(writer))))
}

/// Unexpired records in key order.
pub(crate) async fn list(
    reader: &SqliteReader,
    writer: &Writer,
    scope: &Scope,
    list: &ListQuery,
) -> Result<Vec<KeyRecord>, Error> {
    let at = now(writer);
    let sql = AssertSqlSafe(format!(
        "SELECT {} FROM onceward_keys \
         WHERE scope = (SELECT id FROM onceward_scopes WHERE name = ?1) AND key > ?2 AND expires_at > ?3 \
           AND (?4 IS NULL OR state = ?4) \
         ORDER BY key LIMIT ?5",
        row::COLUMNS
    ));
    let after: &[u8] = list.after.as_ref().map_or(&[], |key| key.as_bytes());
    let statement = query(sql)
        .bind(scope.as_str())
        .bind(after)
        .bind(row::integer(at.now))
        .bind(list.state.map(|state| i64::from(state.code())))
        .bind(i64::from(list.limit));
    let mut records = Vec::new();
    for found in reader.lock().await?.fetch(statement).await? {
        let key = row::key_of(&found).map_err(|error| store_error(READ, error))?;
        records.extend(row::record_of(&found)?.view(key, at));
    }
    Ok(records)
}

/// Counts unexpired keys by state.
pub(crate) async fn stats(reader: &SqliteReader, writer: &Writer, scope: &Scope) -> Result<KeyStats, Error> {
    let failed = |error| store_error(READ, error);
    let statement = query(
        "SELECT state, count(*) FROM onceward_keys \
         WHERE scope = (SELECT id FROM onceward_scopes WHERE name = ?) AND expires_at > ? \
         GROUP BY state",
    )
    .bind(scope.as_str())
    .bind(row::integer(now(writer).now));
    let mut stats = KeyStats::default();
    for found in reader.lock().await?.fetch(statement).await? {
        let code: i64 = found.try_get(0).map_err(failed)?;
        let count: i64 = found.try_get(1).map_err(failed)?;
        if let Some(state) = u8::try_from(code).ok().and_then(KeyState::from_code) {
            stats.set(state, u64::try_from(count).unwrap_or(0));
        }
    }
    Ok(stats)
}
