//! Stores what operators changed.

use std::time::Duration;

use async_trait::async_trait;
use onceward::store::transition::micros;
use onceward::store::{AuditEntry, AuditLog, AuditRecord};
use onceward::{Error, Scope};
use sqlx::{AssertSqlSafe, Row, query};

use crate::error::store_error;
use crate::store::SqliteStore;
use crate::writer::{WRITE, WriterConnection, join_task};

const READ: &str = "read the audit trail";

#[async_trait]
impl AuditLog for SqliteStore {
    async fn append(&self, scope: &Scope, entries: &[AuditEntry]) -> Result<(), Error> {
        let (writer, scope, entries) = (self.writer().clone(), scope.clone(), entries.to_vec());
        // In a task, so that a dropped call does not interrupt a statement.
        let task = tokio::spawn(async move {
            let mut slot = writer.turn().await;
            let scope = writer.scope_id(&mut slot, &scope).await?;
            let now = crate::row::integer(writer.now());
            let conn = slot.conn().await?;
            // One statement, and so one transaction and one sync of the disk.
            let given: Vec<_> =
                entries.iter().map(|entry| (&entry.subject, entry.settles, &entry.text)).collect();
            let given =
                serde_json::to_string(&given).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
            query(
                "INSERT INTO onceward_audit (scope, subject, settles, entry, written_at) \
                 SELECT ?, value ->> 0, value ->> 1, value ->> 2, ? FROM json_each(?) ORDER BY key",
            )
            .bind(scope)
            .bind(now)
            .bind(given)
            .execute(conn)
            .await
            .map(drop)
        });
        join_task(task.await)?.map_err(|error| store_error(WRITE, error))
    }

    async fn settled(&self, scope: &Scope, subjects: &[String]) -> Result<Vec<bool>, Error> {
        let given = serde_json::Value::from(subjects).to_string();
        let statement = query(
            "SELECT EXISTS (SELECT 1 FROM onceward_audit AS a WHERE a.settles AND a.subject = given.value \
             AND a.scope = (SELECT id FROM onceward_scopes WHERE name = ?)) \
             FROM json_each(?) AS given ORDER BY given.key",
        )
        .bind(scope.as_str())
        .bind(given);
        let rows = self.reader().lock().await?.fetch(statement).await?;
        rows.iter().map(|row| row.try_get(0).map_err(|error| store_error(READ, error))).collect()
    }

    async fn read(&self, scope: &Scope, before: Option<u64>, limit: u32) -> Result<Vec<AuditRecord>, Error> {
        let statement = query(
            "SELECT number, entry FROM onceward_audit \
             WHERE scope = (SELECT id FROM onceward_scopes WHERE name = ?) AND number < ? AND entry <> '' \
             ORDER BY number DESC LIMIT ?",
        )
        .bind(scope.as_str())
        .bind(before.map_or(i64::MAX, crate::row::integer))
        .bind(limit);
        let rows = self.reader().lock().await?.fetch(statement).await?;
        let failed = |error| store_error(READ, error);
        let record = |row: &sqlx::sqlite::SqliteRow| {
            let number: i64 = row.try_get(0).map_err(failed)?;
            Ok(AuditRecord { number: number.unsigned_abs(), text: row.try_get(1).map_err(failed)? })
        };
        rows.iter().map(record).collect()
    }

    async fn remove_older(&self, scope: &Scope, age: Duration, limit: u32) -> Result<u64, Error> {
        let (writer, scope) = (self.writer().clone(), scope.clone());
        // In a task, so that a dropped call does not interrupt the transaction.
        let task = tokio::spawn(async move {
            let mut slot = writer.turn().await;
            let scope = writer.scope_id(&mut slot, &scope).await?;
            let until = crate::row::integer(writer.now().saturating_sub(micros(age)));
            slot.begin().await?;
            let outcome = remove_older(&mut slot, scope, until, limit).await;
            slot.finish(outcome).await
        });
        join_task(task.await)?.map_err(|error| store_error(WRITE, error))
    }
}

/// The rows of the oldest entries that are old.
const OLD: &str = "number IN (SELECT number FROM (SELECT number, written_at FROM onceward_audit \
     WHERE scope = ?1 AND entry <> '' ORDER BY number LIMIT ?3) WHERE written_at <= ?2)";

/// An entry that settles its subject is emptied instead: its row is the mark. Entries are in the order of their numbers, and an index
/// has those that are not emptied, so that at most `limit` are looked at.
async fn remove_older(
    slot: &mut WriterConnection,
    scope: i64,
    until: i64,
    limit: u32,
) -> Result<u64, sqlx::Error> {
    let conn = slot.conn().await?;
    let mut removed = 0;
    for change in [
        // Those that are emptied first are no longer among the others.
        format!("UPDATE onceward_audit SET entry = '' WHERE settles AND {OLD}"),
        format!("DELETE FROM onceward_audit WHERE NOT settles AND {OLD}"),
    ] {
        let left = i64::from(limit).saturating_sub_unsigned(removed);
        let change = query(AssertSqlSafe(change)).bind(scope).bind(until).bind(left);
        removed += change.execute(&mut *conn).await?.rows_affected();
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, SqliteConnection};

    use super::*;

    /// Emptied rows stay in front of the entries for ever, and the writer must not walk them.
    #[tokio::test]
    async fn the_oldest_entries_are_found_in_the_index_that_has_no_emptied_ones() {
        let mut conn = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        for step in onceward_migrations::SQLITE {
            sqlx::raw_sql(step.sql).execute(&mut conn).await.unwrap();
        }
        let explain = format!("EXPLAIN QUERY PLAN DELETE FROM onceward_audit WHERE NOT settles AND {OLD}");
        let plan = query(AssertSqlSafe(explain)).bind(1).bind(1).bind(1).fetch_all(&mut conn).await.unwrap();
        let steps: Vec<String> = plan.iter().map(|step| step.get("detail")).collect();
        let found = |step: &String| step.ends_with("USING INDEX onceward_audit_entries (scope=?)");
        assert!(steps.iter().any(found), "{steps:#?}");
    }
}
