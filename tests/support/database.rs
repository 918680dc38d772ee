//! A SQLite file, seen from outside the program under test.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::runtime::{Builder, Runtime};

/// One connection.
#[derive(Debug)]
pub struct Database {
    runtime: Runtime,
    connection: Option<SqliteConnection>,
}

impl Database {
    /// Opens or creates the file, in the journal mode of the store.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub fn open(path: &Path) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // SQLite gives the lock to the first that asks when it is free: beside a program that writes without a pause this takes long.
            .busy_timeout(Duration::from_secs(60));
        let connection = runtime.block_on(options.connect()).expect("a connection to the database");
        Self { runtime, connection: Some(connection) }
    }

    /// Executes statements.
    ///
    /// # Panics
    /// If the database refuses them.
    pub fn execute(&mut self, statements: &str) {
        let connection = self.connection.as_mut().expect("open until dropped");
        let statements = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
        self.runtime.block_on(statements.execute(connection)).expect("the statements are valid");
    }

    /// The first column of a query's first row.
    ///
    /// # Panics
    /// If the database refuses it, or there is no row.
    pub fn number(&mut self, query: &'static str) -> i64 {
        let connection = self.connection.as_mut().expect("open until dropped");
        self.runtime.block_on(sqlx::query_scalar(query).fetch_one(connection)).expect("the query is valid")
    }

    /// The first column of a query's rows.
    ///
    /// # Panics
    /// If the database refuses it.
    pub fn texts(&mut self, query: &'static str) -> Vec<String> {
        let connection = self.connection.as_mut().expect("open until dropped");
        self.runtime.block_on(sqlx::query_scalar(query).fetch_all(connection)).expect("the query is valid")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // If closing fails, the next process that opens the file does it.
            let _ = self.runtime.block_on(connection.close());
        }
    }
}
