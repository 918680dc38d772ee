//! The connection that reads, which never waits for the writer: [`SqliteReader`].

use onceward::Error;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{Mutex, MutexGuard};

use crate::error::store_error;

/// The operation, as errors name it.
pub(crate) const READ: &str = "read from the SQLite store";

/// The connection that reads, opened on first use.
pub(crate) struct SqliteReader {
    options: SqliteConnectOptions,
    conn: Mutex<Option<SqliteConnection>>,
}

impl SqliteReader {
    pub(crate) fn new(options: SqliteConnectOptions) -> Self {
        Self { options, conn: Mutex::new(None) }
    }

    /// Waits for exclusive use of the connection, and opens it if necessary.
    pub(crate) async fn lock(&self) -> Result<ReadConnection<'_>, Error> {
        let mut guard = self.conn.lock().await;
        if guard.is_none() {
            let conn = self.options.connect().await;
            *guard = Some(conn.map_err(|error| store_error(READ, error))?);
        }
        Ok(ReadConnection { guard })
    }

    /// Closes the connection. The next use reopens it.
    pub(crate) async fn close(&self) {
        if let Some(conn) = self.conn.lock().await.take()
            && let Err(error) = conn.close().await
        {
            tracing::debug!(%error, "closing a connection to the SQLite store failed");
        }
    }
}

/// The connection that reads, locked for one query.
pub(crate) struct ReadConnection<'s> {
    guard: MutexGuard<'s, Option<SqliteConnection>>,
}

impl ReadConnection<'_> {
    /// Fetches all rows of a statement. After an error the connection is reopened.
    pub(crate) async fn fetch<'q>(
        mut self,
        statement: sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
    ) -> Result<Vec<SqliteRow>, Error> {
        let Some(conn) = self.guard.as_mut() else { return Ok(Vec::new()) };
        let rows = statement.fetch_all(conn).await;
        if rows.is_err() {
            *self.guard = None;
        }
        rows.map_err(|error| store_error(READ, error))
    }
}
