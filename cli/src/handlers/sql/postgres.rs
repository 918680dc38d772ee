//! One SQL statement per message in Postgres: [`PgSqlHandler`].

use std::fmt;

use onceward::{Error, ErrorKind, Handled, HandlerError, Message, TransactionalStore, TxHandler};
use onceward_postgres::{PgStore, PgTx};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgConnection, PgTypeInfo, PgTypeKind, Postgres};
use sqlx::{
    Arguments as _, AssertSqlSafe, Connection as _, Either, Encode, Executor as _, SqlSafeStr,
    Statement as _, Type, TypeInfo,
};

use super::failure::{Failure, Losses, PARAMETERS, describe};

/// How many parameters a message fills: payload, key, attempt, fence.
const COUNT: usize = 4;

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
            return Ok(Self { statement, losses: Losses::default() });
        }
        let what = if word.is_empty() {
            "it is empty or begins with no word; give one, for example \"SELECT charge($1::jsonb)\""
                .to_owned()
        } else {
            format!("it must begin with one of {}", EFFECTS.join(", "))
        };
        Err(refused(what))
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
        let prepared = self.parameters(&mut store.lend(&mut conn)).await;
        store.rollback(conn).await;
        let parameters = prepared.map_err(|cause| {
            if cause.as_database_error().is_none() {
                return Error::new(
                    ErrorKind::Unavailable,
                    "check the SQL handler's `statement`",
                    "Postgres does not answer",
                )
                .with_source(cause);
            }
            refused(format!(
                "Postgres does not take it: {}. Correct it, or create the tables and functions it names first; {PARAMETERS}",
                describe(&cause)
            ))
        })?;
        Parameter::all(&parameters).map(drop).map_err(refused)
    }

    /// The types of the statement's parameters, as Postgres infers them. A connection is asked once, and knows the
    /// statement from then on.
    async fn parameters(&self, conn: &mut PgConnection) -> sqlx::Result<Vec<PgTypeInfo>> {
        let statement = AssertSqlSafe(self.statement.as_str()).into_sql_str();
        let statement = conn.prepare_with(statement, &declared(&self.statement)).await?;
        Ok(match statement.parameters() {
            Some(Either::Left(types)) => types.to_vec(),
            _ => Vec::new(),
        })
    }

    async fn execute(&self, message: &Message, conn: &mut PgConnection) -> Result<(), HandlerError> {
        let Err(cause) = self.execute_once(message, conn).await? else {
            self.losses.answered(message.key());
            return Ok(());
        };
        let failure = Failure::of(&cause);
        if failure != Failure::Lost {
            self.losses.answered(message.key());
        }
        if matches!(failure, Failure::Conflict | Failure::Other) && cause.as_database_error().is_some() {
            // What was prepared before a table or function changed stays wrong on this connection.
            conn.clear_cached_statements().await.map_err(|cause| self.gone(message, &cause))?;
        }
        let text = format!("the statement failed: {}", describe(&cause));
        Err(match failure {
            Failure::Conflict => HandlerError::conflict(text),
            Failure::Unavailable => HandlerError::unavailable(text),
            Failure::Lost => HandlerError::new(self.losses.verdict(message.key()), text),
            Failure::Permanent => HandlerError::permanent(text),
            Failure::Other => HandlerError::retry(text),
        })
    }

    /// The inner error is that of the execution; the outer one keeps every message from it.
    async fn execute_once(
        &self,
        message: &Message,
        conn: &mut PgConnection,
    ) -> Result<Result<(), sqlx::Error>, HandlerError> {
        let types = match self.parameters(conn).await {
            Ok(types) => types,
            Err(cause) if matches!(Failure::of(&cause), Failure::Conflict) => return Ok(Err(cause)),
            Err(cause) => return Err(self.gone(message, &cause)),
        };
        let parameters = Parameter::all(&types)
            .map_err(|what| HandlerError::unavailable(format!("the statement cannot be used: {what}")))?;
        let mut arguments = PgArguments::default();
        for (parameter, ty) in parameters.into_iter().zip(types) {
            let value = Value { bytes: parameter.bytes(message)?, ty };
            arguments.add(value).map_err(|cause| HandlerError::permanent(cause.to_string()))?;
        }
        let statement = AssertSqlSafe(self.statement.as_str());
        Ok(sqlx::query_with(statement, arguments).execute(&mut *conn).await.map(drop))
    }

    /// The database failed before it saw the message: the same would happen to every other one.
    fn gone(&self, message: &Message, cause: &sqlx::Error) -> HandlerError {
        self.losses.answered(message.key());
        HandlerError::unavailable(format!("the statement cannot be prepared: {}", describe(cause)))
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

fn refused(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, "use the SQL handler's `statement`", what)
}

/// What Postgres is told of the parameters' types: nothing, but of those that the statement leaves out.
fn declared(sql: &str) -> Vec<PgTypeInfo> {
    let is_named = |number: usize| {
        let name = format!("${number}");
        sql.match_indices(&name)
            .any(|(at, _)| !sql[at + name.len()..].starts_with(|c: char| c.is_ascii_digit()))
    };
    let last = (1..=COUNT).rev().find(|number| is_named(*number)).unwrap_or(0);
    (1..=last)
        .map(
            |number| if is_named(number) { PgTypeInfo::with_oid(Oid(0)) } else { PgTypeInfo::with_oid(VOID) },
        )
        .collect()
}

/// The type of parameters that are left out, which no place of a statement can have.
const VOID: Oid = Oid(2278);

/// One parameter, and how its value is written: as Postgres's binary format of its type has it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Parameter {
    Payload {
        is_jsonb: bool,
    },
    KeyText,
    KeyBytes,
    Attempt {
        bytes: usize,
    },
    Fence,
    /// Not named in the statement.
    Absent,
}

impl Parameter {
    /// The statement's parameters, or what keeps a message from filling them.
    fn all(types: &[PgTypeInfo]) -> Result<Vec<Self>, String> {
        if types.len() > COUNT {
            return Err(format!("it has {} parameters; {PARAMETERS}", types.len()));
        }
        types.iter().enumerate().map(|(index, ty)| Self::of(index, base(ty))).collect()
    }

    fn of(index: usize, ty: &PgTypeInfo) -> Result<Self, String> {
        match (index, ty.name()) {
            (_, "VOID") => Ok(Self::Absent),
            (0, "TEXT" | "VARCHAR" | "CHAR" | "JSON" | "BYTEA") => Ok(Self::Payload { is_jsonb: false }),
            (0, "JSONB") => Ok(Self::Payload { is_jsonb: true }),
            (1, "TEXT" | "VARCHAR" | "CHAR") => Ok(Self::KeyText),
            (1, "BYTEA" | "UUID") => Ok(Self::KeyBytes),
            (2, "INT2") => Ok(Self::Attempt { bytes: 2 }),
            (2, "INT4") => Ok(Self::Attempt { bytes: 4 }),
            (2, "INT8") => Ok(Self::Attempt { bytes: 8 }),
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
            Self::Attempt { bytes: 2 } => {
                let attempt = i16::try_from(message.attempt()).map_err(|_| too_large())?;
                Some(attempt.to_be_bytes().to_vec())
            }
            Self::Attempt { bytes: 4 } => {
                let attempt = i32::try_from(message.attempt()).map_err(|_| too_large())?;
                Some(attempt.to_be_bytes().to_vec())
            }
            Self::Attempt { .. } => Some(i64::from(message.attempt()).to_be_bytes().to_vec()),
            Self::Absent => None,
            Self::Fence => Some(i64::try_from(message.fence()).unwrap_or(i64::MAX).to_be_bytes().to_vec()),
        })
    }
}

/// What a domain is made of.
fn base(mut ty: &PgTypeInfo) -> &PgTypeInfo {
    while let PgTypeKind::Domain(inner) = ty.kind() {
        ty = inner;
    }
    ty
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
