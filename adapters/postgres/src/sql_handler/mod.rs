//! Executes one SQL statement per message: [`PgSqlHandler`].

use std::fmt;

use crate::store::PgStore;
use crate::transaction::PgTx;
use onceward::adapter::{StatementFailure, StatementParameter};
use onceward::{Error, ErrorKind, Handled, HandlerError, Message, TransactionalStore, TxHandler};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgConnection, PgTypeInfo, Postgres};
use sqlx::{Arguments as _, Connection as _, Encode, Type};

use self::failure::{FailureClass, Losses, PARAMETERS, classify, describe, describe_after};
use self::prepare::{Prepared, Typed, Types};

mod failure;
mod prepare;

/// Keywords of statements that have an effect and do not end the transaction.
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
/// Postgres infers the type of a parameter from its place in the statement; where it cannot, or infers another one, a cast
/// selects it: `$1::jsonb`.
///
/// A failure that the data can never avoid dead-letters the message: an invalid value (SQLSTATE class 22), a constraint
/// (class 23) other than a foreign key, an exception raised by code in the database (P0001).
///
/// A failure that is not caused by the message uses no attempt: a transaction that was rolled back in favour of another one (a
/// serialization failure, a deadlock, a lock timeout) is [repeated at once](onceward::HandlerError::conflict); a database that is
/// down, starting, read-only, or out of connections or disk is [unavailable](onceward::Verdict::Unavailable), and so is a
/// statement that can no longer be prepared. Everything else is retried as configured: a missing row that a foreign key refers
/// to, a statement that takes too long. Returned rows are dropped; a statement that changes no row completes the message too.
///
/// The statement comes from trusted configuration. It begins with SELECT, INSERT, UPDATE, DELETE, MERGE, WITH or CALL, none of
/// which ends the transaction. Postgres refuses a function or procedure that tries to.
#[derive(Clone)]
pub struct PgSqlHandler {
    statement: String,
    losses: Losses,
    types: Types,
}

impl PgSqlHandler {
    /// A handler that executes `statement`, which no database has checked; see [`check`](Self::check).
    ///
    /// # Errors
    /// [`onceward::Error`] if it does not begin with one of these keywords.
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

    /// Prepares the statement in the database of `store`, without executing it.
    ///
    /// # Errors
    /// [`onceward::Error`] if it cannot be prepared (a typing error, a missing table or right, more than one statement), has a
    /// parameter of an unsupported number or type, or the database does not answer.
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
                "Postgres rejects it: {}. Correct it, or create the tables and functions it names first; {PARAMETERS}",
                self.describe(&cause)
            ))
        })?;
        TypedParameter::all(&prepared.parameters).map(drop).map_err(StatementFailure::invalid_statement)
    }

    /// Prepares the statement, once per connection.
    async fn prepared(&self, conn: &mut PgConnection) -> sqlx::Result<Prepared> {
        if self.is_call() {
            return prepare::prepare_call(conn, &self.statement).await;
        }
        prepare::prepare(conn, &self.statement, &self.types).await
    }

    fn is_call(&self) -> bool {
        first_word(&self.statement).eq_ignore_ascii_case("CALL")
    }

    /// Describes an error of preparing the statement.
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
            // Statements prepared before a table or function changed stay stale on this connection.
            self.types.forget();
            conn.clear_cached_statements().await.map_err(|cause| self.not_prepared(message, &cause))?;
        }
        Err(failure.into_error(format!("the statement failed: {}", describe(&cause))))
    }

    /// Executes the statement. The inner error is that of the execution; the outer one prevents it for every message.
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
        let parameters = TypedParameter::all(&prepared.parameters)
            .map_err(|what| HandlerError::unavailable(format!("the statement cannot be used: {what}")))?;
        let mut arguments = PgArguments::default();
        for (parameter, (_, ty)) in parameters.into_iter().zip(&*prepared.parameters) {
            let value = BinaryValue { bytes: parameter.bytes(message)?, ty: ty.clone() };
            arguments.add(value).map_err(|cause| HandlerError::permanent(cause.to_string()))?;
        }
        Ok(prepare::execute(conn, &self.statement, &prepared, arguments).await)
    }

    /// The error of a statement that could not be prepared, as for every other message.
    fn not_prepared(&self, message: &Message, cause: &sqlx::Error) -> HandlerError {
        self.losses.reset(message.key());
        HandlerError::unavailable(format!("the statement cannot be prepared: {}", self.describe(cause)))
    }
}

impl fmt::Debug for PgSqlHandler {
    /// Omits the statement: literals in it may be secrets.
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

/// A parameter and its type, which determines the binary format of its value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum TypedParameter {
    Payload {
        is_jsonb: bool,
    },
    KeyText,
    KeyBytes,
    SessionError {
        bytes: usize,
    },
    Fence,
    /// Not used in the statement.
    Absent,
}

impl TypedParameter {
    /// The parameters of the statement.
    ///
    /// # Errors
    /// The reason why no message can bind them.
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

    /// The value of `message` in binary format; `None` is NULL.
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
struct BinaryValue {
    bytes: Option<Vec<u8>>,
    ty: PgTypeInfo,
}

impl Type<Postgres> for BinaryValue {
    /// Not used: each value reports its own type.
    fn type_info() -> PgTypeInfo {
        <str as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for BinaryValue {
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

/// The first word after spaces, comments and parentheses.
fn first_word(sql: &str) -> &str {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '(');
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, rest)| rest);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = after_comment(comment);
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            return &rest[..end];
        }
    }
}

/// The text after a comment whose beginning has been read. Comments of Postgres nest.
fn after_comment(mut rest: &str) -> &str {
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
