//! Stores the checkpoints of sources without a broker.

use async_trait::async_trait;
use onceward::adapter::{Checkpoint, CheckpointStore};
use onceward::{Error, ErrorKind, Scope};
use sqlx::{Row, query};

use crate::error::store_error;
use crate::store::SqliteStore;
use crate::writer::{WRITE, join_task};

#[async_trait]
impl CheckpointStore for SqliteStore {
    async fn load_checkpoint(&self, scope: &Scope, source: &str) -> Result<Option<Checkpoint>, Error> {
        const LOAD: &str = "load a checkpoint";
        let statement = query(
            "SELECT incarnation, position, evidence FROM onceward_checkpoints \
             WHERE scope = (SELECT id FROM onceward_scopes WHERE name = ?) AND source = ?",
        )
        .bind(scope.as_str())
        .bind(source);
        let rows = self.reader().lock().await?.fetch(statement).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let failed = |error| store_error(LOAD, error);
        let position: i64 = row.try_get(1).map_err(failed)?;
        let offset = u64::try_from(position).map_err(|_| {
            Error::new(
                ErrorKind::Corrupt,
                LOAD,
                format!("{source} is saved at {position}, which is negative"),
            )
        })?;
        Ok(Some(Checkpoint {
            incarnation: row.try_get(0).map_err(failed)?,
            offset,
            evidence: row.try_get(2).map_err(failed)?,
        }))
    }

    async fn save_checkpoint(
        &self,
        scope: &Scope,
        source: &str,
        checkpoint: &Checkpoint,
    ) -> Result<(), Error> {
        let offset = i64::try_from(checkpoint.offset).map_err(|_| {
            let context = format!("offset {} is larger than any file", checkpoint.offset);
            Error::new(ErrorKind::Internal, "save a checkpoint", context)
        })?;
        let (writer, scope) = (self.writer().clone(), scope.clone());
        let (source, checkpoint) = (source.to_owned(), checkpoint.clone());
        // In a task, so that a dropped call does not interrupt a statement.
        let task = tokio::spawn(async move {
            let mut slot = writer.turn().await;
            let scope = writer.scope_id(&mut slot, &scope).await?;
            let now = crate::row::integer(writer.now());
            let conn = slot.conn().await?;
            query(
                "INSERT INTO onceward_checkpoints (scope, source, incarnation, position, evidence, written_at) \
                 VALUES (?, ?, ?, ?, ?, ?) \
                 ON CONFLICT (scope, source) DO UPDATE SET incarnation = excluded.incarnation, \
                 position = excluded.position, evidence = excluded.evidence, written_at = excluded.written_at",
            )
            .bind(scope)
            .bind(source)
            .bind(checkpoint.incarnation)
            .bind(offset)
            .bind(checkpoint.evidence)
            .bind(now)
            .execute(conn)
            .await
            .map(drop)
        });
        join_task(task.await)?.map_err(|error| store_error(WRITE, error))
    }
}
