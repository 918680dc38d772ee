//! Stores what operators changed.

use async_trait::async_trait;
use onceward::store::{AuditEntry, AuditLog, AuditRecord};
use onceward::{Error, Scope};
use sqlx::{Row, query};

use crate::error::store_error;
use crate::store::SqliteStore;
use crate::writer::{WRITE, join_task};

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
             WHERE scope = (SELECT id FROM onceward_scopes WHERE name = ?) AND number < ? ORDER BY number DESC LIMIT ?",
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
}
