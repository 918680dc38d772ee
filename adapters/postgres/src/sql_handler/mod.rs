//! One SQL statement per message in Postgres: [`PgSqlHandler`].

use std::fmt;

use crate::store::PgStore;
use crate::transaction::PgTx;
use onceward::{
    Error, ErrorKind, Handled, HandlerError, Message, StatementFailure, StatementParameter,
    TransactionalStore, TxHandler,
};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgConnection, PgTypeInfo, Postgres};
use sqlx::{Arguments as _, Connection as _, Encode, Type};

use self::failure::{FailureClass, Losses, PARAMETERS, classify, describe, describe_after};
use self::prepare::{Prepared, Typed, Types};

mod failure;
mod prepare;

/// The statements that have an effect and leave the transaction open.
const EFFECTS: [&str; 7] = ["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "CALL"];

/// Executes one statement for each message, in the transaction that records its completion: *effectively-once*.
///
/// | parameter | value | as one of |
/// |---|---|---|
/// | `$1` | the payload | `text`, `varchar`, `json`, `jsonb`, `bytea` |
/// | `$2` | the key; NULL if the message has none | `text`, `varchar` (32 hexadecimal digits), `bytea`, `uuid` |
/// | `$3` | the attempt, from 1 | `smallint`, `integer`, `bigint` |
/// | `$4` | the fence | `bigint` |
///
/// Postgres decides by the place of a parameter which of its types it is; where it cannot, or decides for another, a cast
/// says it: `$1::jsonb`.
///
/// What the data can never satisfy dead-letters the message: a value that does not fit (SQLSTATE class 22), a constraint
/// (class 23) other than a foreign key, an exception that the database's own code raises (P0001).
///
/// What is not the message's fault uses no attempt: a transaction that was rolled back in favour of another one (a
/// serialization failure, a deadlock, a lock timeout) is [repeated at once](onceward::HandlerError::conflict); a database that is away, starts, is
/// read-only, or out of connections or disk is [unavailable](onceward::Verdict::Unavailable), and so is a statement that
/// cannot be prepared any more, whatever the message. Everything else is tried again as configured: a missing row that a
/// foreign key asks for, a statement that takes too long. Rows that the statement returns are dropped; one that changes no
/// row completes the message all the same.
///
/// The statement comes from trusted configuration. It begins with SELECT, INSERT, UPDATE, DELETE, MERGE, WITH or CALL:
/// nothing that would end the transaction. A function or procedure that tries to is refused by Postgres.
#[derive(Clone)]
pub struct PgSqlHandler {
    statement: String,
    losses: Losses,
    types: Types,
}

impl PgSqlHandler {
    /// A handler that executes `statement`. It asks no database; see [`check`](Self::check).
    ///
    /// # Errors
    /// [`onceward::Error`] if it does not begin as above.
    pub fn new(statement: impl Into<String>) -> Result<Self, Error> {
        let statement = statement.into();
        let word = first_word(&statement);
        if EFFECTS.iter().any(|known| word.eq_ignore_ascii_case(known)) {
            return Ok(Self { statement, losses: Losses::default(), types: Types::default() });
        }
        let what = if word.is_empty() {
            "it is empty or begins with no word; give one, for example \"SELECT charge($1::jsonb)\""
                .to_owned()
        } else {
            format!("it must begin with one of {}", EFFECTS.join(", "))
        };
        Err(StatementFailure::invalid_statement(what))
    }

    /// A handler that executes `statement`, [checked](Self::check) against the database of `store`.
    ///
    /// # Errors
    /// As for [`new`](Self::new) and [`check`](Self::check).
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub async fn prepare(store: &PgStore, statement: impl Into<String>) -> Result<Self, Error> {
        let handler = Self::new(statement)?;
        handler.check(store).await?;
        Ok(handler)
    }

    /// Has the database of `store` prepare the statement, without executing it.
    ///
    /// # Errors
    /// [`onceward::Error`] if it cannot be prepared (a typing error, a missing table or right, more than one statement), asks
    /// for a parameter that no message fills, or the database cannot be asked.
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub async fn check(&self, store: &PgStore) -> Result<(), Error> {
        let mut conn = store.begin().await?;
        let prepared = self.prepared(&mut store.lend(&mut conn)).await;
        store.rollback(conn).await;
        let prepared = prepared.map_err(|cause| {
            if cause.as_database_error().is_none() {
                return Error::new(
                    ErrorKind::Unavailable,
                    "check the SQL handler's `statement`",
                    "Postgres does not answer",
                )
                .with_source(cause);
            }
            StatementFailure::invalid_statement(format!(
                "Postgres does not take it: {}. Correct it, or create the tables and functions it names first; {PARAMETERS}",
                self.describe(&cause)
            ))
        })?;
        Parameter::all(&prepared.parameters).map(drop).map_err(StatementFailure::invalid_statement)
    }

    /// What the connection knows of the statement, which is asked once.
    async fn prepared(&self, conn: &mut PgConnection) -> sqlx::Result<Prepared> {
        if self.is_call() {
            return prepare::prepare_call(conn, &self.statement).await;
        }
        prepare::prepare(conn, &self.statement, &self.types).await
    }

    fn is_call(&self) -> bool {
        first_word(&self.statement).eq_ignore_ascii_case("CALL")
    }

    /// An error of the preparation.
    fn describe(&self, cause: &sqlx::Error) -> String {
        describe_after(cause, if self.is_call() { 0 } else { prepare::BEFORE })
    }

    async fn execute(&self, message: &Message, conn: &mut PgConnection) -> Result<(), HandlerError> {
        let Err(cause) = self.execute_once(message, conn).await? else {
            self.losses.reset(message.key());
            return Ok(());
        };
        let class = classify(&cause);
        let failure = match class {
            FailureClass::Classified(failure) => {
                self.losses.reset(message.key());
                failure
            }
            FailureClass::ConnectionLost => self.losses.count_loss(message.key()),
        };
        let is_stale = matches!(
            class,
            FailureClass::Classified(StatementFailure::Conflict | StatementFailure::Transient)
        );
        if is_stale && cause.as_database_error().is_some() {
            // What was prepared before a table or function changed stays wrong on this connection.
            self.types.forget();
            conn.clear_cached_statements().await.map_err(|cause| self.not_prepared(message, &cause))?;
        }
        Err(failure.into_error(format!("the statement failed: {}", describe(&cause))))
    }

    /// The inner error is that of the execution; the outer one keeps every message from it.
    async fn execute_once(
        &self,
        message: &Message,
        conn: &mut PgConnection,
    ) -> Result<Result<(), sqlx::Error>, HandlerError> {
        let prepared = match self.prepared(conn).await {
            Ok(prepared) => prepared,
            Err(cause) if classify(&cause) == FailureClass::Classified(StatementFailure::Conflict) => {
                return Ok(Err(cause));
            }
            Err(cause) => return Err(self.not_prepared(message, &cause)),
        };
        let parameters = Parameter::all(&prepared.parameters)
            .map_err(|what| HandlerError::unavailable(format!("the statement cannot be used: {what}")))?;
        let mut arguments = PgArguments::default();
        for (parameter, (_, ty)) in parameters.into_iter().zip(&*prepared.parameters) {
            let value = Value { bytes: parameter.bytes(message)?, ty: ty.clone() };
            arguments.add(value).map_err(|cause| HandlerError::permanent(cause.to_string()))?;
        }
        Ok(prepare::execute(conn, &self.statement, &prepared, arguments).await)
    }

    /// The database failed before it saw the message: the same would happen to every other one.
    fn not_prepared(&self, message: &Message, cause: &sqlx::Error) -> HandlerError {
        self.losses.reset(message.key());
        HandlerError::unavailable(format!("the statement cannot be prepared: {}", self.describe(cause)))
    }
}

impl fmt::Debug for PgSqlHandler {
    /// Without the statement: literals in it may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgSqlHandler").finish_non_exhaustive()
    }
}

impl TxHandler<PgStore> for PgSqlHandler {
    async fn handle<'c>(&'c self, message: Message, mut tx: PgTx<'c>) -> Handled {
        let cancellation = message.cancellation();
        if cancellation.is_cancelled() {
            return Err(HandlerError::retry("cancelled before the statement was executed"));
        }
        tokio::select! {
            biased;
            handled = self.execute(&message, &mut tx) => handled,
            () = cancellation.cancelled() => {
                Err(HandlerError::retry("the run was cancelled; its transaction is rolled back"))
            }
        }
    }
}

/// One parameter, and how its value is written: as Postgres's binary format of its type has it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Parameter {
    Payload {
        is_jsonb: bool,
    },
    KeyText,
    KeyBytes,
    SessionError {
        bytes: usize,
    },
    Fence,
    /// Not named in the statement.
    Absent,
}

impl Parameter {
    /// The statement's parameters, or what keeps a message from filling them.
    fn all(types: &[Typed]) -> Result<Vec<Self>, String> {
        if types.len() > StatementParameter::ALL.len() {
            return Err(format!("it has {} parameters; {PARAMETERS}", types.len()));
        }
        types.iter().enumerate().map(|(index, (name, _))| Self::of(index, name)).collect()
    }

    fn of(index: usize, name: &str) -> Result<Self, String> {
        match (index, name) {
            (_, "VOID") => Ok(Self::Absent),
            (0, "TEXT" | "VARCHAR" | "CHAR" | "JSON" | "BYTEA") => Ok(Self::Payload { is_jsonb: false }),
            (0, "JSONB") => Ok(Self::Payload { is_jsonb: true }),
            (1, "TEXT" | "VARCHAR" | "CHAR") => Ok(Self::KeyText),
            (1, "BYTEA" | "UUID") => Ok(Self::KeyBytes),
            (2, "INT2") => Ok(Self::SessionError { bytes: 2 }),
            (2, "INT4") => Ok(Self::SessionError { bytes: 4 }),
            (2, "INT8") => Ok(Self::SessionError { bytes: 8 }),
            (3, "INT8") => Ok(Self::Fence),
            (index, name) => {
                let (what, fix) = [
                    ("the payload", "$1::jsonb, $1::text or $1::bytea"),
                    ("the key", "$2::text"),
                    ("the attempt", "$3::integer"),
                    ("the fence", "$4::bigint"),
                ][index];
                Err(format!(
                    "its parameter ${} is {what}, which cannot be of type {name}; write {fix}",
                    index + 1
                ))
            }
        }
    }

    /// `None` is NULL.
    fn bytes(self, message: &Message) -> Result<Option<Vec<u8>>, HandlerError> {
        let too_large =
            || HandlerError::retry("the attempt does not fit the parameter $3; write $3::integer");
        Ok(match self {
            Self::Payload { is_jsonb: false } => Some(message.payload().to_vec()),
            // The version of the format, then the text.
            Self::Payload { is_jsonb: true } => Some([b"\x01", &message.payload()[..]].concat()),
            Self::KeyText => message.key().map(|key| key.to_string().into_bytes()),
            Self::KeyBytes => message.key().map(|key| key.as_bytes().to_vec()),
            Self::SessionError { bytes: 2 } => {
                let attempt = i16::try_from(message.attempt()).map_err(|_| too_large())?;
                Some(attempt.to_be_bytes().to_vec())
            }
            Self::SessionError { bytes: 4 } => {
                let attempt = i32::try_from(message.attempt()).map_err(|_| too_large())?;
                Some(attempt.to_be_bytes().to_vec())
            }
            Self::SessionError { .. } => Some(i64::from(message.attempt()).to_be_bytes().to_vec()),
            Self::Absent => None,
            Self::Fence => Some(i64::try_from(message.fence()).unwrap_or(i64::MAX).to_be_bytes().to_vec()),
        })
    }
}

/// A value in the binary format of its type.
struct Value {
    bytes: Option<Vec<u8>>,
    ty: PgTypeInfo,
}

impl Type<Postgres> for Value {
    /// Not asked for: each value names its own.
    fn type_info() -> PgTypeInfo {
        <str as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for Value {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match &self.bytes {
            None => Ok(IsNull::Yes),
            Some(bytes) => {
                buffer.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
        }
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.ty.clone())
    }
}

/// The first word behind spaces, comments and parentheses.
fn first_word(sql: &str) -> &str {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '(');
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, rest)| rest);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = behind_comment(comment);
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            return &rest[..end];
        }
    }
}

/// What follows a comment whose beginning has been read. Postgres's comments nest.
fn behind_comment(mut rest: &str) -> &str {
    let mut depth = 1;
    while depth > 0 {
        let Some(at) = rest.find(['*', '/']) else { return "" };
        rest = &rest[at..];
        let step = match rest.get(..2) {
            Some("*/") => {
                depth -= 1;
                2
            }
            Some("/*") => {
                depth += 1;
                2
            }
            _ => 1,
        };
        rest = &rest[step..];
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_that_leaves_the_transaction_open_is_taken() {
        for sql in [
            "SELECT charge($1::jsonb)",
            " insert into t values ($1)",
            "-- why; COMMIT\n/* a /* nested */ COMMIT */ UPDATE t SET a = 1",
            "(SELECT 1)",
            "WITH x AS (SELECT $1) INSERT INTO t SELECT * FROM x",
            "call charge($1)",
        ] {
            assert!(PgSqlHandler::new(sql).is_ok(), "{sql}");
        }
    }

    #[test]
    fn what_ends_the_transaction_or_sets_the_session_is_refused() {
        for sql in ["COMMIT", "rollback", "/* x */ SET x = 1", "BEGIN", "PREPARE TRANSACTION 'x'", "SELECTED"]
        {
            let error = PgSqlHandler::new(sql).unwrap_err();
            assert!(error.to_string().contains("must begin with"), "{sql}: {error}");
        }
        for sql in ["", "-- SELECT", "/* SELECT", "/* /* */ SELECT", "'SELECT'"] {
            let error = PgSqlHandler::new(sql).unwrap_err();
            assert!(error.to_string().contains("empty"), "{sql:?}: {error}");
        }
    }
}
