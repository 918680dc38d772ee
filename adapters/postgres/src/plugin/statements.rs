//! `[handler.sql]` in Postgres.

use std::sync::Arc;

use async_trait::async_trait;
use onceward::Error;
use onceward_plugin::{PipelineParts, ReadyPipeline, StatementStore};

use crate::{PgSqlHandler, PgStore};

/// A store that runs statements, apart from the traits of its own.
pub(super) struct Statements(pub(super) Arc<PgStore>);

#[async_trait]
impl StatementStore for Statements {
    async fn check(&self, statement: &str) -> Result<(), Error> {
        PgSqlHandler::new(statement)?.check(&self.0).await
    }

    fn pipeline(&self, statement: &str, parts: PipelineParts) -> Result<ReadyPipeline, Error> {
        let handler = PgSqlHandler::new(statement)?;
        Ok(ReadyPipeline::new(parts.builder(Arc::clone(&self.0)).transactional_handler(handler)?))
    }

    async fn close(&self) {
        self.0.close().await;
    }
}
