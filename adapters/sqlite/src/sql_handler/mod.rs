//! Executes one SQL statement per message: [`SqliteSqlHandler`].

mod interrupt;
mod statement;

use std::fmt;

use crate::store::SqliteStore;
use crate::transaction::SqliteTx;
use onceward::adapter::StatementFailure;
use onceward::{Error, Handled, HandlerError, Message, TransactionalStore, TxHandler};
use sqlx::{AssertSqlSafe, query};

use interrupt::Interrupt;

/// Executes one statement for each message, in the transaction that records its completion: *effectively-once*.
///
/// | parameter | value |
/// |---|---|
/// | `$1` | the payload, as text; as a blob if it is not UTF-8 |
/// | `$2` | the key, 32 hexadecimal digits; NULL if the message has none |
/// | `$3` | the attempt, from 1 |
/// | `$4` | the fence |
///
/// A failure that the data can never avoid (a UNIQUE, CHECK or NOT NULL constraint, the type of a strict table, a trigger's RAISE,
/// malformed JSON) dead-letters the message. Everything else is retried: a busy or full database, a missing row that a foreign
/// key refers to, a table that was changed. Returned rows are dropped; a statement that changes no row completes the message too.
///
/// The statement comes from trusted configuration. It is one INSERT, UPDATE, DELETE, REPLACE or WITH, none of which ends the
/// transaction.
#[derive(Clone)]
pub struct SqliteSqlHandler {
    statement: String,
}

impl SqliteSqlHandler {
    /// A handler that executes `statement`, which no database has checked; see [`check`](Self::check).
    ///
    /// # Errors
    /// [`onceward::Error`] if it is not one statement of the kinds above, or has other parameters.
    pub fn new(statement: impl Into<String>) -> Result<Self, Error> {
        let statement = statement.into();
        match statement::validate(&statement) {
            Ok(()) => Ok(Self { statement }),
            Err(what) => Err(StatementFailure::invalid_statement(what)),
        }
    }

    /// A handler that executes `statement`, [checked](Self::check) against the database of `store`.
    ///
    /// # Errors
    /// As for [`new`](Self::new) and [`check`](Self::check).
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub async fn prepare(store: &SqliteStore, statement: impl Into<String>) -> Result<Self, Error> {
        let handler = Self::new(statement)?;
        handler.check(store).await?;
        Ok(handler)
    }

    /// Compiles the statement in the database of `store`, without executing it. It waits for the writer.
    ///
    /// # Errors
    /// [`onceward::Error`] if it does not compile (a typing error, a missing table), or the database does not answer.
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub async fn check(&self, store: &SqliteStore) -> Result<(), Error> {
        let mut conn = store.begin().await?;
        let compiled = self.compile(&mut store.lend(&mut conn)).await;
        store.rollback(conn).await;
        compiled.map_err(|cause| {
            let what = "SQLite rejects it; correct it, or create the tables it names first";
            StatementFailure::invalid_statement(what).with_source(cause)
        })
    }

    /// Compiles the statement by EXPLAIN, which is not cached and executes nothing.
    async fn compile(&self, tx: &mut SqliteTx<'_>) -> sqlx::Result<()> {
        let explain = format!("EXPLAIN {}", self.statement);
        query(AssertSqlSafe(explain)).persistent(false).execute(&mut **tx).await.map(drop)
    }

    async fn execute(&self, message: &Message, tx: &mut SqliteTx<'_>) -> sqlx::Result<()> {
        let statement = query(AssertSqlSafe(self.statement.as_str()));
        let statement = match std::str::from_utf8(message.payload()) {
            Ok(text) => statement.bind(text),
            Err(_) => statement.bind(&message.payload()[..]),
        };
        statement
            .bind(message.key().map(|key| key.to_string()))
            .bind(i64::from(message.attempt()))
            .bind(i64::try_from(message.fence()).unwrap_or(i64::MAX))
            .execute(&mut **tx)
            .await
            .map(drop)
    }

    /// Classifies the failure of a statement that was executed for a message.
    async fn classify(&self, cause: &sqlx::Error, tx: &mut SqliteTx<'_>) -> StatementFailure {
        let code = cause.as_database_error().and_then(|error| error.code()?.parse().ok()).unwrap_or(0);
        match classify_code(code) {
            Some(failure) => failure,
            // It still compiles, so it failed on the values.
            None if self.compile(tx).await.is_ok() => StatementFailure::Permanent,
            None => StatementFailure::Transient,
        }
    }
}

impl fmt::Debug for SqliteSqlHandler {
    /// Omits the statement: literals in it may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteSqlHandler").finish_non_exhaustive()
    }
}

impl TxHandler<SqliteStore> for SqliteSqlHandler {
    async fn handle<'c>(&'c self, message: Message, mut tx: SqliteTx<'c>) -> Handled {
        let cancellation = message.cancellation();
        if cancellation.is_cancelled() {
            return Err(HandlerError::retry("cancelled before the statement was executed"));
        }
        let interrupt = Interrupt::install(&mut tx, cancellation.clone()).await?;
        let executed = self.execute(&message, &mut tx).await;
        interrupt.remove(&mut tx).await?;
        let Err(cause) = executed else { return Ok(()) };
        if cancellation.is_cancelled() {
            return Err(HandlerError::retry("the run was cancelled; its transaction is rolled back"));
        }
        let failure = self.classify(&cause, &mut tx).await;
        Err(failure.into_error(format!("the statement failed: {}", HandlerError::from(cause))))
    }
}

/// Classifies an extended result code of SQLite, whose low byte is the primary code. `None`: the code alone does not say
/// whether the data or the schema is the cause.
fn classify_code(code: i32) -> Option<StatementFailure> {
    match code {
        // SQLITE_CONSTRAINT_ with CHECK, NOTNULL, PRIMARYKEY, TRIGGER, UNIQUE, ROWID, DATATYPE.
        275 | 1299 | 1555 | 1811 | 2067 | 2579 | 3091 => Some(StatementFailure::Permanent),
        // SQLITE_TOOBIG and SQLITE_MISMATCH.
        18 | 20 => Some(StatementFailure::Permanent),
        // SQLITE_ERROR: of malformed JSON and of a missing table alike.
        1 => None,
        _ => Some(StatementFailure::Transient),
    }
}
