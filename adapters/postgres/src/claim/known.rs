//! Answers claims of settled keys from a plain read: no row is locked, nothing written, and no disk waited for.

use std::collections::HashMap;
use std::sync::Arc;

use onceward::store::transition::Moment;
use onceward::store::{Claim, ClaimRequest, ClaimTerms, KeyState};
use onceward::{Error, Key, Scope};
use sqlx::postgres::{PgRow, PgTypeInfo};
use sqlx::{AssertSqlSafe, Postgres, Row, Type, query};

use crate::row::{self, COLUMNS, NOW};
use crate::session::{CallOptions, READ, Sessions};

/// SQL that reads completed and dead records with the time of the read. With synchronous standbys it finds none: a completion
/// that a restart has cut off from its wait for them is visible, and an answer must wait in its place, as the commit of a
/// transaction with locks does.
pub(super) fn sql(schema: &str) -> String {
    format!(
        "SELECT {COLUMNS}, now, floor \
         FROM (SELECT {NOW} AS now, value AS floor FROM {schema}.meta \
               WHERE name = 'fence_floor' AND current_setting('synchronous_standby_names') = '' OFFSET 0) AS at, \
         {schema}.keys WHERE scope = $1 AND key = ANY ($2::bytea[]) AND state IN (4, 5)"
    )
}

/// The types of the statement's parameters.
pub(super) fn parameters() -> Vec<PgTypeInfo> {
    vec![<i64 as Type<Postgres>>::type_info(), <Vec<Vec<u8>> as Type<Postgres>>::type_info()]
}

/// The answers for those of `batch` whose keys are completed or dead and stay so. All others have to be claimed.
///
/// The answer holds for the moment of the read, at which the record was committed and, since completions and burials wait for
/// the disk, durable.
pub(super) async fn settled(
    sessions: &Sessions,
    scope: &Scope,
    terms: &ClaimTerms,
    batch: &[ClaimRequest],
) -> Result<HashMap<Key, Claim>, Error> {
    let scope = sessions.scope_id(scope).await.map_err(|error| error.into_error(READ))?;
    let keys: Arc<[Key]> = batch.iter().map(|request| request.key).collect();
    let (schema, asked) = (sessions.schema.clone(), keys);
    let rows = sessions
        .run_with_retry(CallOptions::from(READ).replies(1), true, move |conn| {
            let (schema, asked) = (schema.clone(), asked.clone());
            Box::pin(async move {
                let read = query(AssertSqlSafe(sql(&schema))).bind(scope).bind(row::key_bytes(asked.iter()));
                read.fetch_all(conn).await
            })
        })
        .await
        .map_err(|error| error.into_error(READ))?;
    let requests: HashMap<Key, &ClaimRequest> = batch.iter().map(|request| (request.key, request)).collect();
    Ok(rows.iter().filter_map(|found| answer(found, terms, &requests)).collect())
}

/// `None`: the record is to be written, or cannot be read.
fn answer(found: &PgRow, terms: &ClaimTerms, requests: &HashMap<Key, &ClaimRequest>) -> Option<(Key, Claim)> {
    let key = row::key_of(found).ok()?;
    let mut record = row::record_of(found).ok()?;
    let number = |name| found.try_get::<i64, _>(name).ok().and_then(|number| u64::try_from(number).ok());
    let at = Moment { now: number("now")?, fence_floor: number("floor")? };
    let is_settled = matches!(record.state, KeyState::Completed | KeyState::Dead);
    let step = record.claim(at, terms, requests.get(&key)?);
    (is_settled && !step.changed).then_some((key, step.answer))
}
