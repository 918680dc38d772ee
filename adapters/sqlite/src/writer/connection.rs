//! The connection that writes, and the transaction that is open on it: [`WriterConnection`].

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Executor};

/// The connection that writes, opened when it is needed.
pub(crate) struct WriterConnection {
    options: SqliteConnectOptions,
    conn: Option<SqliteConnection>,
    /// A transaction was begun and its end not seen. Whoever finds this with their turn was preceded by a task that
    /// ended with its runtime.
    pub(crate) unfinished: bool,
}

impl WriterConnection {
    pub(crate) fn new(options: SqliteConnectOptions) -> Self {
        Self { options, conn: None, unfinished: false }
    }

    /// The connection, opened if it is not.
    pub(crate) async fn conn(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        let conn = match self.conn.take() {
            Some(conn) => conn,
            None => {
                let conn = self.options.connect().await?;
                // If the file vanishes later, an empty new one would only hide that.
                self.options = self.options.clone().create_if_missing(false);
                conn
            }
        };
        Ok(self.conn.insert(conn))
    }

    /// What is attempted when the connection is opened, for errors: which file it is matters most then.
    pub(crate) fn opening(&self) -> String {
        format!("open the SQLite store {}", self.options.get_filename().display())
    }

    /// The connection, if it is open.
    pub(crate) fn opened(&mut self) -> Option<&mut SqliteConnection> {
        self.conn.as_mut()
    }

    /// Closes the connection, and with it ends whatever transaction is open.
    pub(crate) async fn reset(&mut self) {
        self.unfinished = false;
        if let Some(conn) = self.conn.take()
            && let Err(error) = conn.close().await
        {
            tracing::debug!(%error, "closing a connection to the SQLite store failed");
        }
    }

    /// Closes the connection without waiting for it.
    pub(crate) fn abandon(&mut self) {
        self.unfinished = false;
        self.conn = None;
    }

    /// Says that a transaction is about to begin, or has been seen to end.
    pub(crate) fn set_unfinished(&mut self, unfinished: bool) {
        self.unfinished = unfinished;
    }

    /// Runs `sql`, which takes no part in a transaction that could stay open.
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

    /// Ends the transaction. If that fails, nobody knows whether it was committed, and the connection is closed so
    /// that nothing stays open.
    pub(crate) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        let outcome = self.run("COMMIT").await;
        match outcome {
            Ok(()) => self.unfinished = false,
            Err(_) => self.reset().await,
        }
        outcome
    }

    /// Ends the transaction as its work has ended: committed, or rolled back.
    pub(crate) async fn finish<T>(&mut self, outcome: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        match outcome {
            Ok(done) => self.commit().await.map(|()| done),
            Err(error) => {
                self.rollback().await;
                Err(error)
            }
        }
    }

    /// Rolls the transaction back, by closing the connection if need be.
    pub(crate) async fn rollback(&mut self) {
        match self.run("ROLLBACK").await {
            Ok(()) => self.unfinished = false,
            Err(_) => self.reset().await,
        }
    }
}
