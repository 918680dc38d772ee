//! Stores the checkpoints of sources without a broker.

use async_trait::async_trait;
use onceward::adapter::{Checkpoint, CheckpointStore};
use onceward::{Error, ErrorKind, Scope};
use sqlx::{AssertSqlSafe, Row, query};

use crate::row;
use crate::store::PgStore;

const LOAD: &str = "load a checkpoint";
const SAVE: &str = "save a checkpoint";

#[async_trait]
impl CheckpointStore for PgStore {
    async fn load_checkpoint(&self, scope: &Scope, source: &str) -> Result<Option<Checkpoint>, Error> {
        let (schema, scope, source) = (self.schema(), scope.as_str().to_owned(), source.to_owned());
        let named = source.clone();
        let found: Option<(String, i64, String)> = self
            .sessions()
            .run_with_retry(LOAD, true, move |conn| {
                let (schema, scope, source) = (schema.clone(), scope.clone(), source.clone());
                Box::pin(async move {
                    let sql = format!(
                        "SELECT incarnation, position, evidence FROM {schema}.checkpoints \
                         WHERE scope = (SELECT id FROM {schema}.scopes WHERE name = $1) AND source = $2"
                    );
                    let row = query(AssertSqlSafe(sql)).bind(scope).bind(source).fetch_optional(conn).await?;
                    row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).transpose()
                })
            })
            .await
            .map_err(|error| error.into_error(LOAD))?;
        let Some((incarnation, position, evidence)) = found else { return Ok(None) };
        let offset = u64::try_from(position).map_err(|_| {
            let context = format!("{named} is saved at {position}, which is negative");
            Error::new(ErrorKind::Corrupt, LOAD, context)
        })?;
        Ok(Some(Checkpoint { incarnation, offset, evidence }))
    }

    async fn save_checkpoint(
        &self,
        scope: &Scope,
        source: &str,
        checkpoint: &Checkpoint,
    ) -> Result<(), Error> {
        let offset = i64::try_from(checkpoint.offset).map_err(|_| {
            let context = format!("offset {} is larger than any file", checkpoint.offset);
            Error::new(ErrorKind::Internal, SAVE, context)
        })?;
        let scope = self.sessions().scope_id(scope).await.map_err(|error| error.into_error(SAVE))?;
        let (schema, source, checkpoint) = (self.schema(), source.to_owned(), checkpoint.clone());
        self.sessions()
            .run_with_retry(SAVE, true, move |conn| {
                let (schema, source, checkpoint) = (schema.clone(), source.clone(), checkpoint.clone());
                Box::pin(async move {
                    let sql = format!(
                        "INSERT INTO {schema}.checkpoints (scope, source, incarnation, position, evidence, written_at) \
                         VALUES ($1, $2, $3, $4, $5, {}) ON CONFLICT (scope, source) DO UPDATE \
                         SET incarnation = excluded.incarnation, position = excluded.position, \
                         evidence = excluded.evidence, written_at = excluded.written_at",
                        row::NOW
                    );
                    query(AssertSqlSafe(sql))
                        .bind(scope)
                        .bind(source)
                        .bind(checkpoint.incarnation)
                        .bind(offset)
                        .bind(checkpoint.evidence)
                        .execute(conn)
                        .await
                        .map(drop)
                })
            })
            .await
            .map_err(|error| error.into_error(SAVE))
    }
}
