//! Claims and completions in one statement, and so one round trip: claims of keys without a row, and completions of held
//! claims. All other keys are processed under row locks.

use std::collections::HashMap;
use std::sync::Arc;

use onceward::store::transition::micros;
use onceward::store::{Claim, ClaimRequest, ClaimTerms, Claimed, CompleteRequest, Completion, Lease};
use onceward::{Error, Key, Scope};
use sqlx::postgres::{PgRow, PgTypeInfo};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row, Type, query};

use crate::claim::known;
use crate::error::is_lock_timeout;
use crate::row::{self, NOW, integer};
use crate::session::{CallOptions, SessionError, Sessions, WRITE};

/// Whether claims wait for the disk, and for synchronous standbys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// They do: each is the only guard against a second run.
    Synced,
    /// New ones do not: the completion is the guard.
    Deferred,
}

/// Claims the keys that have no row, and returns their claims. `None`: another transaction has locked a row for longer than
/// `lock_timeout`, and nothing was written.
pub(crate) async fn claim(
    sessions: &Sessions,
    scope: &Scope,
    terms: &ClaimTerms,
    batch: &[ClaimRequest],
    durability: Durability,
) -> Result<Option<HashMap<Key, Claim>>, Error> {
    let scope = sessions.scope_id(scope).await.map_err(|error| error.into_error(WRITE))?;
    let mut sorted = batch.to_vec();
    sorted.sort_unstable_by_key(|request| request.key);
    let requests: Arc<[ClaimRequest]> = sorted.into();
    let (schema, lease, ttl) =
        (sessions.schema.clone(), integer(micros(terms.lease)), integer(micros(terms.ttl)));
    let asked = requests.clone();
    let outcome = sessions
        .run_with_retry(CallOptions::from(WRITE).replies(1), true, move |conn| {
            let (schema, asked) = (schema.clone(), asked.clone());
            Box::pin(async move { insert_claims(conn, &schema, scope, lease, ttl, &asked, durability).await })
        })
        .await;
    let won: HashMap<Key, u64> = match outcome {
        Ok(won) => won.into_iter().collect(),
        Err(SessionError::Failed(error)) if is_lock_timeout(&error) => return Ok(None),
        Err(error) => return Err(error.into_error(WRITE)),
    };
    let claimed = requests.iter().filter_map(|request| {
        let lease = Lease { key: request.key, owner: request.owner, fence: *won.get(&request.key)? };
        let claimed = Claimed {
            lease,
            attempt: 1,
            lost: 0,
            generation: request.possible_generation(),
            lease_left: terms.lease,
        };
        Some((request.key, Claim::Claimed(claimed)))
    });
    Ok(Some(claimed.collect()))
}

/// Completes the claims that are pending and held by their requests, and returns them. `None`: as for [`claim`].
pub(crate) async fn complete(
    sessions: &Sessions,
    scope: &Scope,
    batch: &[CompleteRequest],
) -> Result<Option<HashMap<Key, Completion>>, Error> {
    let scope = sessions.scope_id(scope).await.map_err(|error| error.into_error(WRITE))?;
    let mut sorted = batch.to_vec();
    sorted.sort_unstable_by_key(|request| request.lease.key);
    let requests: Arc<[CompleteRequest]> = sorted.into();
    let (schema, asked) = (sessions.schema.clone(), requests);
    let outcome = sessions
        .run_with_retry(CallOptions::from(WRITE).replies(1), true, move |conn| {
            let (schema, asked) = (schema.clone(), asked.clone());
            Box::pin(async move { finish_claims(conn, &schema, scope, &asked).await })
        })
        .await;
    match outcome {
        Ok(found) => Ok(Some(found.into_iter().collect())),
        Err(SessionError::Failed(error)) if is_lock_timeout(&error) => Ok(None),
        Err(attempt) => Err(attempt.into_error(WRITE)),
    }
}

/// The statements and the types of their parameters, which each connection prepares.
pub(crate) fn statements(schema: &str) -> Vec<(String, Vec<PgTypeInfo>)> {
    fn of<T: Type<Postgres>>() -> PgTypeInfo {
        T::type_info()
    }
    let (number, bytes) = (of::<i64>(), of::<Vec<Vec<u8>>>());
    let (numbers, ints, flag) = (of::<Vec<i64>>(), of::<Vec<i32>>(), of::<bool>());
    let claim = [&number, &number, &number, &bytes, &bytes, &ints, &bytes, &flag].into_iter().cloned();
    let complete = [&number, &bytes, &bytes, &numbers, &numbers, &ints, &bytes, &bytes].into_iter().cloned();
    vec![
        (claim_sql(schema), claim.collect()),
        (known::sql(schema), known::parameters()),
        (completion_sql(schema), complete.collect()),
    ]
}

/// SQL that claims keys without a row; with `$8` its commit does not wait for the disk.
fn claim_sql(schema: &str) -> String {
    // A second claim of the key in the same microsecond finds the row of the first, so fences stay distinct.
    format!(
        "INSERT INTO {schema}.keys (scope, fence, lease_until, first_at, written_at, ttl, expires_at, attempts, \
         lost, generation, state, started, key, owner, fingerprint) \
         SELECT $1, greatest(now, floor + 1), now + $2, now, now, $3, now + $2 + $3, 0, 0, g, 1, false, k, o, f \
         FROM (SELECT {NOW} AS now, value AS floor FROM {schema}.meta WHERE name = 'fence_floor' \
               AND (NOT $8 OR set_config('synchronous_commit', 'off', true) = 'off') OFFSET 0) AS at, \
         unnest($4::bytea[], $5::bytea[], $6::integer[], $7::bytea[]) AS given (k, o, g, f) \
         ORDER BY k ON CONFLICT DO NOTHING RETURNING key, fence"
    )
}

/// SQL that completes held claims.
fn completion_sql(schema: &str) -> String {
    // An insert that always conflicts instead of UPDATE … FROM unnest, which the planner may turn into a table scan.
    format!(
        "INSERT INTO {schema}.keys AS keys (scope, fence, lease_until, first_at, written_at, ttl, expires_at, \
         attempts, lost, generation, state, started, key, owner, fingerprint, result) \
         SELECT $1, e, 0, now, now, t, now + t, 0, 0, g, 4, false, k, o, f, r \
         FROM (SELECT {NOW} AS now OFFSET 0) AS at, \
         unnest($2::bytea[], $3::bytea[], $4::bigint[], $5::bigint[], $6::integer[], $7::bytea[], $8::bytea[]) \
         AS given (k, o, e, t, g, f, r) ORDER BY k \
         ON CONFLICT (scope, key) DO UPDATE SET state = 4, started = false, lease_until = 0, \
         written_at = excluded.written_at, ttl = excluded.ttl, expires_at = excluded.expires_at, \
         reason = NULL, error = NULL, result = excluded.result \
         WHERE keys.state = 1 AND keys.owner = excluded.owner AND keys.fence = excluded.fence \
           AND keys.expires_at > excluded.written_at \
         RETURNING key, xmax = 0 AS inserted"
    )
}

async fn insert_claims(
    conn: &mut PgConnection,
    schema: &str,
    scope: i64,
    lease: i64,
    ttl: i64,
    asked: &[ClaimRequest],
    durability: Durability,
) -> Result<Vec<(Key, u64)>, sqlx::Error> {
    let rows = query(AssertSqlSafe(claim_sql(schema)))
        .bind(scope)
        .bind(lease)
        .bind(ttl)
        .bind(row::key_bytes(asked.iter().map(|request| &request.key)))
        .bind(row::owner_bytes(asked.iter().map(|request| &request.owner)))
        .bind(row::ints(asked.iter().map(|request| request.possible_generation())))
        .bind(row::fingerprint_bytes(asked.iter().map(|request| &request.fingerprint)))
        .bind(durability == Durability::Deferred)
        .fetch_all(conn)
        .await?;
    let fence = |row: &PgRow| row.try_get::<i64, _>("fence");
    rows.iter()
        .map(|row| Ok((row::key_of(row)?, u64::try_from(fence(row)?).unwrap_or(0))))
        .collect::<Result<Vec<_>, sqlx::Error>>()
}

async fn finish_claims(
    conn: &mut PgConnection,
    schema: &str,
    scope: i64,
    asked: &[CompleteRequest],
) -> Result<Vec<(Key, Completion)>, sqlx::Error> {
    let rows = query(AssertSqlSafe(completion_sql(schema)))
        .bind(scope)
        .bind(row::key_bytes(asked.iter().map(|request| &request.lease.key)))
        .bind(row::owner_bytes(asked.iter().map(|request| &request.lease.owner)))
        .bind(row::integers(asked.iter().map(|request| request.lease.fence)))
        .bind(row::integers(asked.iter().map(|request| micros(request.ttl))))
        .bind(row::ints(asked.iter().map(|request| request.possible_generation())))
        .bind(row::fingerprint_bytes(asked.iter().map(|request| &request.fingerprint)))
        .bind(row::stored_results(asked))
        .fetch_all(conn)
        .await?;
    let found = |row: &PgRow| {
        let inserted = row.try_get("inserted")?;
        Ok((row::key_of(row)?, if inserted { Completion::Inserted } else { Completion::Completed }))
    };
    rows.iter().map(found).collect::<Result<Vec<_>, sqlx::Error>>()
}
