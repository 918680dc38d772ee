//! Reads and writes records as rows of the table of keys, in batches and in key order.

use std::collections::HashSet;

use onceward::store::transition::{Record, RecordColumns};
use onceward::store::{CompleteRequest, OwnerToken};
use onceward::{Error, ErrorKind, Fingerprint, Key};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row, query};

use crate::operators::{BYTEAS, EQ};

/// The columns that [`key_of`] and [`record_of`] read.
pub(crate) const COLUMNS: &str = "key, state, started, owner, fence, attempts, lost, generation, lease_until, \
     first_at, written_at, ttl, reason, fingerprint, error, result";

/// The server's clock in microseconds, read when the expression is evaluated.
pub(crate) const NOW: &str =
    "(extract(epoch FROM pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)::bigint";

/// A value as `bigint`: at most 2^63 − 1, which no clock and no TTL reaches.
pub(crate) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A count as `integer`. A generation uses the whole range of `u32`, whose upper half is stored as negative numbers.
fn int(value: u32) -> i32 {
    value.cast_signed()
}

pub(crate) fn key_bytes<'k>(keys: impl IntoIterator<Item = &'k Key>) -> Vec<&'k [u8]> {
    keys.into_iter().map(|key| key.as_bytes().as_slice()).collect()
}

pub(crate) fn owner_bytes<'k>(owners: impl IntoIterator<Item = &'k OwnerToken>) -> Vec<&'k [u8]> {
    owners.into_iter().map(|owner| owner.as_bytes().as_slice()).collect()
}

pub(crate) fn fingerprint_bytes<'k>(
    prints: impl IntoIterator<Item = &'k Option<Fingerprint>>,
) -> Vec<Option<&'k [u8]>> {
    prints.into_iter().map(|print| print.as_ref().map(|print| print.as_bytes().as_slice())).collect()
}

/// What each completion keeps as its result.
pub(crate) fn stored_results<'k>(
    requests: impl IntoIterator<Item = &'k CompleteRequest>,
) -> Vec<Option<Vec<u8>>> {
    requests.into_iter().map(|request| request.stored_result().map(Into::into)).collect()
}

pub(crate) fn integers(values: impl IntoIterator<Item = u64>) -> Vec<i64> {
    values.into_iter().map(integer).collect()
}

pub(crate) fn ints(values: impl IntoIterator<Item = u32>) -> Vec<i32> {
    values.into_iter().map(int).collect()
}

/// Inserts a row for each key without one, so that every key of the batch has a row to lock. `keys` are sorted.
pub(crate) async fn occupy(
    conn: &mut PgConnection,
    schema: &str,
    scope: i64,
    keys: &[Key],
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "INSERT INTO {schema}.keys (scope, fence, lease_until, first_at, written_at, ttl, expires_at, attempts, lost, \
         generation, state, started, key, owner) \
         SELECT $1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, false, k, decode('00000000000000000000000000000000', 'hex') \
         FROM unnest($2::bytea[]) AS given (k) ORDER BY k ON CONFLICT DO NOTHING"
    );
    query(AssertSqlSafe(sql)).bind(scope).bind(key_bytes(keys)).execute(conn).await.map(drop)
}

/// As [`occupy`], but skips keys for which another transaction has an uncommitted row.
pub(crate) async fn occupy_free(
    conn: &mut PgConnection,
    schema: &str,
    scope: i64,
    keys: &[Key],
) -> Result<(), sqlx::Error> {
    let sql = format!("SELECT {schema}.occupy_free($1, $2::bytea[])");
    query(AssertSqlSafe(sql)).bind(scope).bind(key_bytes(keys)).execute(conn).await.map(drop)
}

/// The `keys` that have a row, locked or not.
pub(crate) async fn existing(
    conn: &mut PgConnection,
    schema: &str,
    scope: i64,
    keys: &[Key],
) -> Result<HashSet<Key>, sqlx::Error> {
    let sql = format!("SELECT key FROM {schema}.keys WHERE scope = $1 AND key = ANY($2::bytea[])");
    let rows = query(AssertSqlSafe(sql)).bind(scope).bind(key_bytes(keys)).fetch_all(conn).await?;
    rows.iter().map(key_of).collect()
}

/// Locks the rows of `keys` one after the other, in key order. `others` is empty to wait for rows that another transaction has
/// locked, or `SKIP LOCKED`.
pub(crate) async fn lock(
    conn: &mut PgConnection,
    schema: &str,
    scope: i64,
    keys: &[Key],
    others: &'static str,
) -> Result<Vec<PgRow>, sqlx::Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM {schema}.keys WHERE scope {EQ} $1 AND key {EQ} ANY ($2::{BYTEAS}) \
         ORDER BY key FOR UPDATE {others}"
    );
    query(AssertSqlSafe(sql)).bind(scope).bind(key_bytes(keys)).fetch_all(conn).await
}

/// `text` as the database can store it: without NUL, and in ASCII if its encoding is `narrow`.
pub(crate) fn storable(text: &str, narrow: bool) -> String {
    if narrow {
        return text.chars().map(|c| if c.is_ascii() && c != '\0' { c } else { '?' }).collect();
    }
    text.replace('\0', "\u{fffd}")
}

/// Writes records whose rows are locked. `now` becomes the expiry of forgotten ones; `narrow`: the database's encoding lacks
/// characters.
pub(crate) async fn write(
    conn: &mut PgConnection,
    schema: &str,
    scope: i64,
    records: &[(Key, &Record)],
    now: u64,
    narrow: bool,
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "INSERT INTO {schema}.keys AS keys (scope, key, state, started, owner, fence, attempts, lost, generation, \
         lease_until, first_at, written_at, ttl, expires_at, reason, fingerprint, error, result) \
         SELECT $1, * FROM unnest($2::{BYTEAS}, $3::smallint[], $4::boolean[], $5::{BYTEAS}, $6::bigint[], $7::integer[], \
         $8::integer[], $9::integer[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], \
         $15::smallint[], $16::{BYTEAS}, $17::pg_catalog.text[], $18::{BYTEAS}) AS given (key) ORDER BY key \
         ON CONFLICT (scope, key) DO UPDATE SET state = excluded.state, started = excluded.started, \
         owner = excluded.owner, fence = excluded.fence, attempts = excluded.attempts, lost = excluded.lost, \
         generation = excluded.generation, lease_until = excluded.lease_until, first_at = excluded.first_at, \
         written_at = excluded.written_at, ttl = excluded.ttl, expires_at = excluded.expires_at, \
         reason = excluded.reason, fingerprint = excluded.fingerprint, error = excluded.error, result = excluded.result"
    );
    let all = || records.iter().map(|(_, record)| *record);
    // The row of a forgotten key keeps its fence until it is purged.
    let expires_at = |record: &Record| if record.written_at == 0 { now } else { record.expires_at() };
    query(AssertSqlSafe(sql))
        .bind(scope)
        .bind(key_bytes(records.iter().map(|(key, _)| key)))
        .bind(all().map(|record| i16::from(record.state.code())).collect::<Vec<_>>())
        .bind(all().map(|record| record.started).collect::<Vec<_>>())
        .bind(owner_bytes(all().map(|record| &record.owner)))
        .bind(integers(all().map(|record| record.fence)))
        .bind(ints(all().map(|record| record.attempts)))
        .bind(ints(all().map(|record| record.lost)))
        .bind(ints(all().map(|record| record.generation)))
        .bind(integers(all().map(|record| record.lease_until)))
        .bind(integers(all().map(|record| record.first_at)))
        .bind(integers(all().map(|record| record.written_at)))
        .bind(integers(all().map(|record| record.ttl)))
        .bind(integers(all().map(expires_at)))
        .bind(all().map(|record| record.reason.map(|reason| i16::from(reason.code()))).collect::<Vec<_>>())
        .bind(fingerprint_bytes(all().map(|record| &record.fingerprint)))
        .bind(
            all()
                .map(|record| Some(storable(record.detail.as_deref()?.error.as_deref()?, narrow)))
                .collect::<Vec<Option<String>>>(),
        )
        .bind(all().map(|record| record.detail.as_deref()?.result.as_deref()).collect::<Vec<Option<&[u8]>>>())
        .execute(conn)
        .await
        .map(drop)
}

/// The key of a row.
pub(crate) fn key_of(row: &PgRow) -> Result<Key, sqlx::Error> {
    let bytes: &[u8] = row.try_get("key")?;
    let bytes = bytes.try_into().map_err(|_| sqlx::Error::Decode("a key is not 16 bytes long".into()))?;
    Ok(Key::from_bytes(bytes))
}

/// Decodes the record of a row.
///
/// # Errors
/// [`ErrorKind::Corrupt`]: the row is damaged, which concerns its key alone.
pub(crate) fn record_of(row: &PgRow) -> Result<Record, Error> {
    read_columns(row).and_then(RecordColumns::decode).map_err(|what| {
        let context = format!("a row of the table of keys holds {what}; forget the key, or restore a backup");
        Error::new(ErrorKind::Corrupt, "read a record", context)
    })
}

fn read_columns(row: &PgRow) -> Result<RecordColumns<'_>, String> {
    fn column<'r, T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>>(
        row: &'r PgRow,
        name: &'static str,
    ) -> Result<T, String> {
        row.try_get(name).map_err(|error| format!("an unreadable {name} ({error})"))
    }
    // Written by `int`: the upper half of `u32` is stored as negative numbers.
    let count = |name| column::<i32>(row, name).map(|value| i64::from(value.cast_unsigned()));
    Ok(RecordColumns {
        state: column::<i16>(row, "state")?.into(),
        started: column(row, "started")?,
        owner: column(row, "owner")?,
        fence: column(row, "fence")?,
        attempts: count("attempts")?,
        lost: count("lost")?,
        generation: count("generation")?,
        lease_until: column(row, "lease_until")?,
        first_at: column(row, "first_at")?,
        written_at: column(row, "written_at")?,
        ttl: column(row, "ttl")?,
        reason: column::<Option<i16>>(row, "reason")?.map(i64::from),
        fingerprint: column(row, "fingerprint")?,
        error: column(row, "error")?,
        result: column(row, "result")?,
    })
}
