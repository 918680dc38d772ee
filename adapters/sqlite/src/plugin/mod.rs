//! SQLite in the configuration of the `onceward` program: `[store.sqlite]`, and `[handler.sql]` in it.

mod findings;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use onceward::{Error, ErrorKind};
use onceward_plugin::files::writable_directory;
use onceward_plugin::{
    Checked, Context, Finding, LogRule, OpenStore, PipelineParts, Purpose, ReadyPipeline, Secrets,
    StatementStore, StoreFacts, StorePlugin, check, table,
};

use crate::config::is_plain_file;
use crate::{SqliteConfig, SqliteSqlHandler, SqliteStore};

pub use self::SqliteTable as Store;
pub use findings::FINDINGS;

/// The log lines of the client library.
pub const LOG_RULES: &[LogRule] = &[LogRule::new("sqlx", "error")];

/// What this store can do, for the checks of other options.
pub const FACTS: StoreFacts =
    StoreFacts { is_transactional: true, has_single_writer: true, has_outbox: true, is_in_memory: false };

table! {
    /// One SQLite file on this host.
    SqliteTable [store] {
        /// The database file; created when it is absent, in a directory that exists. A relative path starts from the
        /// directory of the configuration file.
        pub path: PathBuf,
    }
}

impl SqliteTable {
    fn config(&self, context: &Context<'_>) -> SqliteConfig {
        // A little less than the limit of a call, so that a busy file is reported as busy before the call times out.
        let busy = self.timeout.get().mul_f64(0.9);
        let mut config = SqliteConfig::new(context.resolve(&self.path));
        config.busy_timeout = busy;
        config
    }
}

impl Secrets for SqliteTable {}

#[async_trait]
impl StorePlugin for SqliteTable {
    fn describe(&self, context: &Context<'_>) -> String {
        format!("sqlite:{}", context.resolve(&self.path).display())
    }

    fn facts(&self) -> StoreFacts {
        FACTS
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        let path = self.path.to_string_lossy();
        check::text(context, "path", &path)?;
        if !is_plain_file(&path) {
            return Err(context.problem(
                "path",
                "is not a plain file, but a database in memory or a URL of SQLite",
                "write a file's path, or use [store.memory] for a trial",
            ));
        }
        Ok(())
    }

    async fn open(&self, context: &Context<'_>, purpose: Purpose) -> Result<OpenStore, Error> {
        let mut config = self.config(context);
        match purpose {
            Purpose::Run => require_directory(context, &config)?,
            Purpose::Check | Purpose::Operate if config.path.exists() => {
                config.create = false;
                config.migrate = false;
            }
            Purpose::Check | Purpose::Operate => {
                let what = format!(
                    "there is no file {} yet; `onceward run` creates it, and so does `onceward migrate`",
                    config.path.display()
                );
                return Err(Error::new(ErrorKind::Config, "open the SQLite store", what));
            }
        }
        let store = Arc::new(SqliteStore::open(config).await?);
        Ok(OpenStore {
            store: store.clone(),
            checkpoints: store.clone(),
            audit: Some(store.clone()),
            outbox: Some(Box::new(store.outbox())),
            statements: Some(Arc::new(SqliteStatements(store))),
        })
    }

    async fn inspect(&self, context: &Context<'_>) -> Result<Option<Finding>, Error> {
        let path = context.resolve(&self.path);
        if !path.exists() {
            let named = path.display();
            return Ok(Some(match writable_directory(&path) {
                Ok(()) => Finding::warning(
                    "sqlite-file-absent",
                    context.table(),
                    format!("there is no file {named} yet; the first run creates it"),
                    "check the path if keys should be in it already",
                ),
                Err(what) => Finding::error(
                    "sqlite-file-not-creatable",
                    context.table(),
                    format!("{named} cannot be created, since {what}"),
                    "create the directory and make it writable for this user",
                ),
            }));
        }
        let missing = SqliteStore::missing_migrations(&self.config(context)).await?;
        Ok(check::missing_migrations(context, &self.describe(context), missing))
    }

    async fn migrate(&self, context: &Context<'_>) -> Result<Option<u32>, Error> {
        let config = self.config(context);
        require_directory(context, &config)?;
        SqliteStore::migrate(&config).await.map(Some)
    }
}

/// SQLite creates no directories, and reports a missing one as an error that may pass.
fn require_directory(context: &Context<'_>, config: &SqliteConfig) -> Result<(), Error> {
    match config.path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            let what = format!(
                "{} cannot be created, since there is no directory {}; create it, or correct {}",
                config.path.display(),
                parent.display(),
                context.key("path")
            );
            Err(Error::new(ErrorKind::Config, "open the SQLite store", what))
        }
        _ => Ok(()),
    }
}

/// `[handler.sql]` in SQLite.
struct SqliteStatements(Arc<SqliteStore>);

#[async_trait]
impl StatementStore for SqliteStatements {
    async fn check(&self, statement: &str) -> Result<(), Error> {
        SqliteSqlHandler::new(statement)?.check(&self.0).await
    }

    fn pipeline(&self, statement: &str, parts: PipelineParts) -> Result<ReadyPipeline, Error> {
        let handler = SqliteSqlHandler::new(statement)?;
        Ok(ReadyPipeline::new(parts.builder(Arc::clone(&self.0)).transactional_handler(handler)?))
    }

    async fn close(&self) {
        self.0.close().await;
    }
}
