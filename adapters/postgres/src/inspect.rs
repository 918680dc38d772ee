//! What the store knows of keys, without changing it.

use onceward::store::{KeyRecord, KeyState, KeyStats, ListQuery};
use onceward::{Error, Key, Scope};
use sqlx::{AssertSqlSafe, Row, query};

use crate::error::store_error;
use crate::row;
use crate::session::{READ, Sessions};

/// The record of a key, if there is an unexpired one.
pub(crate) async fn inspect(
    sessions: &Sessions,
    scope: &Scope,
    key: &Key,
) -> Result<Option<KeyRecord>, Error> {
    let at = sessions.moment().await.map_err(|error| error.into_error(READ))?;
    let (schema, scope, wanted) = (sessions.schema.clone(), scope.as_str().to_owned(), *key);
    let found = sessions
        .run_with_retry(READ, true, move |conn| {
            let (schema, scope) = (schema.clone(), scope.clone());
            Box::pin(async move {
                let sql = format!(
                    "SELECT {} FROM {schema}.keys \
                     WHERE scope = (SELECT id FROM {schema}.scopes WHERE name = $1) AND key = $2",
                    row::COLUMNS
                );
                query(AssertSqlSafe(sql))
                    .bind(scope)
                    .bind(wanted.as_bytes().as_slice())
                    .fetch_optional(conn)
                    .await
            })
        })
        .await
        .map_err(|error| error.into_error(READ))?;
    let record = found.as_ref().map(row::record_of).transpose()?;
    Ok(record.and_then(|record| record.view(*key, at)))
}

/// Unexpired records in key order.
pub(crate) async fn list(
    sessions: &Sessions,
    scope: &Scope,
    list: &ListQuery,
) -> Result<Vec<KeyRecord>, Error> {
    let at = sessions.moment().await.map_err(|error| error.into_error(READ))?;
    let (schema, scope) = (sessions.schema.clone(), scope.as_str().to_owned());
    let after = list.after.as_ref().map_or(Vec::new(), |key| key.as_bytes().to_vec());
    let (state, limit) = (list.state.map(|state| i16::from(state.code())), i64::from(list.limit));
    let found = sessions
        .run_with_retry(READ, true, move |conn| {
            let (schema, scope, after) = (schema.clone(), scope.clone(), after.clone());
            Box::pin(async move {
                let sql = format!(
                    "SELECT {} FROM {schema}.keys \
                     WHERE scope = (SELECT id FROM {schema}.scopes WHERE name = $1) AND key > $2 \
                       AND expires_at > $3 AND written_at > 0 AND ($4::smallint IS NULL OR state = $4) \
                     ORDER BY key LIMIT $5",
                    row::COLUMNS
                );
                let statement = query(AssertSqlSafe(sql)).bind(scope).bind(after).bind(row::integer(at.now));
                statement.bind(state).bind(limit).fetch_all(conn).await
            })
        })
        .await
        .map_err(|error| error.into_error(READ))?;
    let mut records = Vec::new();
    for row in &found {
        let key = row::key_of(row).map_err(|error| store_error(READ, error))?;
        records.extend(row::record_of(row)?.view(key, at));
    }
    Ok(records)
}

/// Counts unexpired keys by state.
pub(crate) async fn stats(sessions: &Sessions, scope: &Scope) -> Result<KeyStats, Error> {
    let (schema, scope) = (sessions.schema.clone(), scope.as_str().to_owned());
    let counts: Vec<(i16, i64)> = sessions
        .run_with_retry(READ, true, move |conn| {
            let (schema, scope) = (schema.clone(), scope.clone());
            Box::pin(async move {
                let sql = format!(
                    "SELECT state, count(*) FROM {schema}.keys \
                     WHERE scope = (SELECT id FROM {schema}.scopes WHERE name = $1) AND expires_at > {} \
                       AND written_at > 0 GROUP BY state",
                    row::NOW
                );
                let rows = query(AssertSqlSafe(sql)).bind(scope).fetch_all(conn).await?;
                rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
            })
        })
        .await
        .map_err(|error| error.into_error(READ))?;
    let mut stats = KeyStats::default();
    for (code, count) in counts {
        if let Some(state) = u8::try_from(code).ok().and_then(KeyState::from_code) {
            stats.set(state, u64::try_from(count).unwrap_or(0));
        }
    }
    Ok(stats)
}
