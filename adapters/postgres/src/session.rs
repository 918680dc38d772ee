//! The store's own connections, and the transaction that decides about a batch under row locks.
//!
//! Everything runs in tasks of its own: a caller who goes away leaves no connection inside a transaction (a cancelled
//! `BEGIN` would poison the pool). After an error that leaves the session usable, a lock timeout above all, the transaction
//! is rolled back and the connection kept; after others it is closed.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use onceward::store::transition::Moment;
use onceward::{Error, ErrorKind, Scope};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, Row, query};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::error::{is_conflict, is_lost, is_stale, leaves_usable, store_error};
use crate::guard::catch_panic;
use crate::operators::EQ;
use crate::pool::Pool;
use crate::row;

/// What was attempted, for errors.
pub(crate) const WRITE: &str = "write to the Postgres store";
pub(crate) const READ: &str = "read from the Postgres store";

/// How often work that another transaction thwarted is tried, in all.
const TRIES: u32 = 6;

pub(crate) type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, sqlx::Error>> + Send + 'c>>;

/// The pool and what every statement needs. Clones share it.
#[derive(Clone)]
pub(crate) struct Sessions {
    pub(crate) pool: Pool,
    /// Quoted.
    pub(crate) schema: Arc<str>,
    /// For how long one with_reply_timeout is waited for: a second more than the server gives a statement.
    pub(crate) patience: Duration,
    scopes: Arc<Mutex<HashMap<Scope, i64>>>,
    /// Up to when this worker has removed expired rows in its present pass.
    pub(crate) purged_to: Arc<AtomicI64>,
    lost: Arc<AtomicU64>,
}

/// One use of a connection.
#[derive(Clone, Copy)]
pub(crate) struct CallOptions {
    operation: &'static str,
    /// How many replies it waits for at most.
    replies: u32,
    /// It opens a transaction, to be rolled back if it fails.
    transaction: bool,
}

impl From<&'static str> for CallOptions {
    /// One statement, which may have to be prepared.
    fn from(operation: &'static str) -> Self {
        Self { operation, replies: 2, transaction: false }
    }
}

impl CallOptions {
    /// Waits for so many replies.
    pub(crate) fn replies(self, replies: u32) -> Self {
        Self { replies, ..self }
    }

    /// It opens a transaction.
    pub(crate) fn transaction(self) -> Self {
        Self { transaction: true, ..self }
    }
}

impl Sessions {
    pub(crate) fn new(pool: Pool, schema: String, statement_timeout: Duration) -> Self {
        Self {
            pool,
            schema: schema.into(),
            patience: statement_timeout + Duration::from_secs(1),
            scopes: Arc::default(),
            purged_to: Arc::default(),
            lost: Arc::default(),
        }
    }

    /// How many attempts were repeated after a connection was lost: their first statements may still be at work.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Runs `work` on a connection, in a task.
    async fn run<T: Send + 'static>(
        &self,
        call: CallOptions,
        work: impl for<'c> FnOnce(&'c mut PgConnection) -> Work<'c, T> + Send + 'static,
    ) -> Result<T, SessionError> {
        let (pool, patience) = (self.pool.clone(), self.patience);
        let (_caller, mut caller) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let mut conn = pool.acquire().await?;
            if caller.try_recv() == Err(oneshot::error::TryRecvError::Closed) {
                // The caller has given up, and repeats the call if it still wants it. Nothing was sent.
                conn.give_back();
                return Err(SessionError::Ended(call.operation));
            }
            match timeout(patience * call.replies, catch_panic(work(&mut conn))).await {
                Ok(Ok(value)) => {
                    conn.give_back();
                    Ok(value)
                }
                Ok(Err(error)) if is_silence(&error) => {
                    conn.abandon(patience);
                    Err(SessionError::Silent)
                }
                Ok(Err(error)) => {
                    if is_lost(&error) {
                        pool.distrust_idle();
                    }
                    let usable = leaves_usable(&error)
                        && (!call.transaction
                            || matches!(
                                timeout(patience, catch_panic(conn.execute("ROLLBACK"))).await,
                                Ok(Ok(_))
                            ));
                    if usable {
                        conn.give_back();
                    }
                    Err(SessionError::Failed(error))
                }
                Err(_) => {
                    conn.abandon(patience);
                    Err(SessionError::Silent)
                }
            }
        });
        match task.await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(SessionError::Ended(call.operation)),
            },
        }
    }

    /// Runs `work` on a connection, in a task, and repeats it on another one where that may help and cannot hurt.
    pub(crate) async fn run_with_retry<T: Send + 'static>(
        &self,
        call: impl Into<CallOptions>,
        repeatable: bool,
        work: impl for<'c> Fn(&'c mut PgConnection) -> Work<'c, T> + Clone + Send + 'static,
    ) -> Result<T, SessionError> {
        let call = call.into();
        let mut tried = 0;
        loop {
            tried += 1;
            let attempt = work.clone();
            let outcome = self.run(call, move |conn| attempt(conn)).await;
            let again = match &outcome {
                Err(SessionError::Failed(error)) if is_lost(error) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    repeatable
                }
                Err(SessionError::Failed(error)) => is_conflict(error) || is_stale(error),
                _ => false,
            };
            if !again || tried == TRIES {
                return outcome;
            }
            let wait = Duration::from_millis(fastrand::u64(1..=10) << tried);
            tokio::time::sleep(wait).await;
        }
    }

    /// The number of a scope, written on its own so that no rollback can take it back.
    pub(crate) async fn scope_id(&self, scope: &Scope) -> Result<i64, SessionError> {
        if let Some(id) = self.known_scopes().get(scope) {
            return Ok(*id);
        }
        let (schema, name) = (self.schema.clone(), scope.as_str().to_owned());
        let id = self
            .run_with_retry(CallOptions::from(WRITE).replies(6), true, move |conn| {
                let (schema, name) = (schema.clone(), name.clone());
                Box::pin(async move {
                    let find = format!("SELECT id FROM {schema}.scopes WHERE name = $1");
                    let insert = format!(
                        "INSERT INTO {schema}.scopes (name) VALUES ($1) ON CONFLICT (name) DO NOTHING"
                    );
                    if let Some(row) =
                        query(AssertSqlSafe(find.clone())).bind(&name).fetch_optional(&mut *conn).await?
                    {
                        return row.try_get(0);
                    }
                    query(AssertSqlSafe(insert)).bind(&name).execute(&mut *conn).await?;
                    query(AssertSqlSafe(find)).bind(&name).fetch_one(&mut *conn).await?.try_get(0)
                })
            })
            .await?;
        self.known_scopes().insert(scope.clone(), id);
        Ok(id)
    }

    fn known_scopes(&self) -> std::sync::MutexGuard<'_, HashMap<Scope, i64>> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store's time.
    pub(crate) async fn moment(&self) -> Result<Moment, SessionError> {
        let schema = self.schema.clone();
        self.run_with_retry(READ, true, move |conn| {
            let schema = schema.clone();
            Box::pin(async move { moment(conn, &schema).await })
        })
        .await
    }
}

/// The server's time, and the fences that purged records had.
pub(crate) async fn moment(conn: &mut PgConnection, schema: &str) -> Result<Moment, sqlx::Error> {
    let sql = format!("SELECT {}, value FROM {schema}.meta WHERE name {EQ} 'fence_floor'", row::NOW);
    let row = query(AssertSqlSafe(sql)).fetch_one(conn).await?;
    let number = |n| Ok::<_, sqlx::Error>(u64::try_from(row.try_get::<i64, _>(n)?).unwrap_or(0));
    Ok(Moment { now: number(0)?, fence_floor: number(1)? })
}

/// Waits for one with_reply_timeout. Past `patience` the connection is given up.
pub(crate) async fn with_reply_timeout<T>(
    patience: Duration,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(patience, statement)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::Error::from(std::io::ErrorKind::TimedOut))))
}

fn is_silence(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut)
}

/// How an attempt failed.
pub(crate) enum SessionError {
    /// With an error.
    Failed(sqlx::Error),
    /// The server said nothing for too long; what was asked may have happened.
    Silent,
    /// The runtime ended.
    Ended(&'static str),
}

impl From<sqlx::Error> for SessionError {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

impl SessionError {
    /// As the caller is told.
    pub(crate) fn into_error(self, operation: &'static str) -> Error {
        match self {
            Self::Failed(error) => store_error(operation, error),
            Self::Silent => {
                let context =
                    "the server said nothing for longer than statement_timeout; it may have happened";
                Error::new(ErrorKind::Timeout, operation, context)
            }
            Self::Ended(operation) => {
                let context = "the runtime ended before the call did; it may have happened";
                Error::new(ErrorKind::Unavailable, operation, context)
            }
        }
    }
}
