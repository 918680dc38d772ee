//! Stores what operators changed.

use std::time::Duration;

use async_trait::async_trait;
use onceward::store::transition::micros;
use onceward::store::{AuditEntry, AuditLog, AuditRecord};
use onceward::{Error, Scope};
use sqlx::{AssertSqlSafe, Row, query};

use crate::row;
use crate::store::PgStore;

const APPEND: &str = "append to the audit trail";
const READ: &str = "read the audit trail";
const REMOVE: &str = "remove old entries of the audit trail";

#[async_trait]
impl AuditLog for PgStore {
    async fn append(&self, scope: &Scope, entries: &[AuditEntry]) -> Result<(), Error> {
        let scope = self.sessions().scope_id(scope).await.map_err(|error| error.into_error(APPEND))?;
        let (schema, entries) = (self.schema(), entries.to_vec());
        self.sessions()
            .run_with_retry(APPEND, true, move |conn| {
                let (schema, entries) = (schema.clone(), entries.clone());
                Box::pin(async move {
                    // The order of the rows is that of the numbers, which are drawn as they are inserted.
                    let sql = format!(
                        "INSERT INTO {schema}.audit (scope, subject, settles, entry, written_at) \
                         SELECT $1, subject, settles, entry, {} FROM unnest($2::text[], $3::boolean[], $4::text[]) \
                         WITH ORDINALITY AS given (subject, settles, entry, place) ORDER BY place",
                        row::NOW
                    );
                    query(AssertSqlSafe(sql))
                        .bind(scope)
                        .bind(entries.iter().map(|entry| entry.subject.clone()).collect::<Vec<_>>())
                        .bind(entries.iter().map(|entry| entry.settles).collect::<Vec<_>>())
                        .bind(entries.iter().map(|entry| entry.text.clone()).collect::<Vec<_>>())
                        .execute(conn)
                        .await
                        .map(drop)
                })
            })
            .await
            .map_err(|error| error.into_error(APPEND))
    }

    async fn settled(&self, scope: &Scope, subjects: &[String]) -> Result<Vec<bool>, Error> {
        let (schema, scope, subjects) = (self.schema(), scope.as_str().to_owned(), subjects.to_vec());
        self.sessions()
            .run_with_retry(READ, true, move |conn| {
                let (schema, scope, subjects) = (schema.clone(), scope.clone(), subjects.clone());
                Box::pin(async move {
                    let sql = format!(
                        "SELECT EXISTS (SELECT 1 FROM {schema}.audit AS a WHERE a.settles AND a.subject = given.subject \
                         AND a.scope = (SELECT id FROM {schema}.scopes WHERE name = $1)) \
                         FROM unnest($2::text[]) WITH ORDINALITY AS given (subject, place) ORDER BY place"
                    );
                    let rows = query(AssertSqlSafe(sql)).bind(scope).bind(subjects).fetch_all(conn).await?;
                    rows.iter().map(|row| row.try_get(0)).collect()
                })
            })
            .await
            .map_err(|error| error.into_error(READ))
    }

    async fn read(&self, scope: &Scope, before: Option<u64>, limit: u32) -> Result<Vec<AuditRecord>, Error> {
        let (schema, scope) = (self.schema(), scope.as_str().to_owned());
        let before = before.map_or(i64::MAX, row::integer);
        let rows: Vec<(i64, String)> = self
            .sessions()
            .run_with_retry(READ, true, move |conn| {
                let (schema, scope) = (schema.clone(), scope.clone());
                Box::pin(async move {
                    let sql = format!(
                        "SELECT number, entry FROM {schema}.audit \
                         WHERE scope = (SELECT id FROM {schema}.scopes WHERE name = $1) AND number < $2 \
                         AND entry <> '' ORDER BY number DESC LIMIT $3"
                    );
                    let rows = query(AssertSqlSafe(sql)).bind(scope).bind(before).bind(i64::from(limit));
                    let rows = rows.fetch_all(conn).await?;
                    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
                })
            })
            .await
            .map_err(|error| error.into_error(READ))?;
        let record = |(number, text): (i64, String)| AuditRecord { number: number.unsigned_abs(), text };
        Ok(rows.into_iter().map(record).collect())
    }

    /// An entry that settles its subject is emptied instead: its row is the mark. Rows that another worker removes are skipped.
    async fn remove_older(&self, scope: &Scope, age: Duration, limit: u32) -> Result<u64, Error> {
        let (schema, scope) = (self.schema(), scope.as_str().to_owned());
        let removed: i64 = self
            .sessions()
            .run_with_retry(REMOVE, false, move |conn| {
                let (schema, scope) = (schema.clone(), scope.clone());
                Box::pin(async move {
                    // Entries are in the order of their numbers, and an index has those not emptied, so that at most `limit` are looked at.
                    let sql = format!(
                        "WITH oldest AS (SELECT number, written_at FROM {schema}.audit \
                           WHERE scope = (SELECT id FROM {schema}.scopes WHERE name = $1) AND entry <> '' \
                           ORDER BY number LIMIT $3 FOR UPDATE SKIP LOCKED), \
                         old AS MATERIALIZED (SELECT number FROM oldest WHERE written_at <= {} - $2), \
                         gone AS (DELETE FROM {schema}.audit WHERE number IN (SELECT number FROM old) AND NOT settles RETURNING 1), \
                         emptied AS (UPDATE {schema}.audit SET entry = '' WHERE number IN (SELECT number FROM old) AND settles \
                           RETURNING 1) \
                         SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM emptied)",
                        row::NOW
                    );
                    let statement = query(AssertSqlSafe(sql)).bind(scope).bind(row::integer(micros(age)));
                    statement.bind(i64::from(limit)).fetch_one(conn).await?.try_get(0)
                })
            })
            .await
            .map_err(|error| error.into_error(REMOVE))?;
        Ok(removed.unsigned_abs())
    }
}
