//! The connection that writes, and its open transaction: [`WriterConnection`].

use std::time::Duration;

use onceward::Error;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Executor};

use crate::error::store_error;

/// The connection that writes, opened on first use.
pub(crate) struct WriterConnection {
    options: SqliteConnectOptions,
    conn: Option<SqliteConnection>,
    /// Whether a transaction was begun and its end not observed. Set at the start of a turn, it means that the previous task ended
    /// with its runtime.
    pub(crate) unfinished: bool,
}

impl WriterConnection {
    pub(crate) fn new(options: SqliteConnectOptions) -> Self {
        Self { options, conn: None, unfinished: false }
    }

    /// The connection, opened if necessary.
    pub(crate) async fn conn(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        let conn = match self.conn.take() {
            Some(conn) => conn,
            None => {
                let conn = self.options.connect().await?;
                // If the file is deleted later, creating an empty one would hide that.
                self.options = self.options.clone().create_if_missing(false);
                conn
            }
        };
        Ok(self.conn.insert(conn))
    }

    /// The operation of opening the connection, with the path, for errors.
    pub(crate) fn opening(&self) -> String {
        format!("open the SQLite store {}", self.options.get_filename().display())
    }

    /// The connection, if it is open.
    pub(crate) fn opened(&mut self) -> Option<&mut SqliteConnection> {
        self.conn.as_mut()
    }

    /// Closes the connection, which rolls back an open transaction.
    pub(crate) async fn reset(&mut self) {
        self.unfinished = false;
        if let Some(conn) = self.conn.take()
            && let Err(error) = conn.close().await
        {
            tracing::debug!(%error, "closing a connection to the SQLite store failed");
        }
    }

    /// Closes the connection without waiting for the result.
    pub(crate) fn abandon(&mut self) {
        self.unfinished = false;
        self.conn = None;
    }

    /// Notes that a transaction is about to begin, or has ended.
    pub(crate) fn set_unfinished(&mut self, unfinished: bool) {
        self.unfinished = unfinished;
    }

    /// Executes `sql`.
    async fn run(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        self.conn().await?.execute(sql).await.map(drop)
    }

    /// Opens a transaction that writes.
    pub(crate) async fn begin(&mut self) -> Result<(), sqlx::Error> {
        self.unfinished = true;
        let outcome = self.run("BEGIN IMMEDIATE").await;
        self.unfinished = outcome.is_ok();
        outcome
    }

    /// Commits the transaction. If that fails, the outcome is unknown, and the connection is closed so that no transaction stays
    /// open.
    pub(crate) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        let outcome = self.run("COMMIT").await;
        match outcome {
            Ok(()) => self.unfinished = false,
            Err(_) => self.reset().await,
        }
        outcome
    }

    /// Commits the transaction after success, and rolls it back after an error.
    pub(crate) async fn finish<T>(&mut self, outcome: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        match outcome {
            Ok(done) => self.commit().await.map(|()| done),
            Err(error) => {
                self.rollback().await;
                Err(error)
            }
        }
    }

    /// Rolls the transaction back, by closing the connection if necessary.
    pub(crate) async fn rollback(&mut self) {
        match self.run("ROLLBACK").await {
            Ok(()) => self.unfinished = false,
            Err(_) => self.reset().await,
        }
    }
}

/// Opens the writer's connection. Processes that open a new file concurrently conflict while it is switched to WAL, for which
/// SQLite does not wait; so this retries for about a second.
pub(crate) async fn connect(slot: &mut WriterConnection) -> Result<&mut SqliteConnection, Error> {
    const TRIES: u32 = 50;
    let mut tried = 0;
    loop {
        match slot.conn().await {
            Ok(_) => break,
            Err(sqlx::Error::Database(error)) if tried < TRIES && is_busy(error.as_ref()) => {
                tried += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(store_error(slot.opening(), error)),
        }
    }
    let opening = slot.opening();
    slot.conn().await.map_err(|error| store_error(opening, error))
}

fn is_busy(error: &dyn sqlx::error::DatabaseError) -> bool {
    error.code().and_then(|code| code.parse::<i32>().ok()).is_some_and(|code| code & 0xff == 5)
}
