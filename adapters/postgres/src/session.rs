//! Runs statements on the store's own sessions, with timeouts and retries: [`Sessions`].
//!
//! Each call runs in a task: a dropped call leaves no connection inside a transaction (a cancelled `BEGIN` would poison the
//! pool). After an error that leaves the session usable, such as a lock timeout, the transaction is rolled back and the
//! connection kept; after others it is closed.

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

/// Operations, as errors name them.
pub(crate) const WRITE: &str = "write to the Postgres store";
pub(crate) const READ: &str = "read from the Postgres store";

/// The maximum number of attempts of a call, conflicts and lost connections included.
const TRIES: u32 = 6;

pub(crate) type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, sqlx::Error>> + Send + 'c>>;

/// The pool of sessions and the state that all statements share. Clones share both.
#[derive(Clone)]
pub(crate) struct Sessions {
    pub(crate) pool: Pool,
    /// The quoted name of the schema.
    pub(crate) schema: Arc<str>,
    /// The timeout of one reply: the server's `statement_timeout` plus 1 s.
    pub(crate) patience: Duration,
    scopes: Arc<Mutex<HashMap<Scope, i64>>>,
    /// The expiry time, in microseconds, up to which this worker has removed rows in its current purge pass.
    pub(crate) purged_to: Arc<AtomicI64>,
    /// The number of connections lost so far.
    lost: Arc<AtomicU64>,
}

/// How one call uses its connection.
#[derive(Clone, Copy)]
pub(crate) struct CallOptions {
    operation: &'static str,
    /// The maximum number of replies it waits for.
    replies: u32,
    /// Whether it opens a transaction, which a failure rolls back.
    transaction: bool,
}

impl From<&'static str> for CallOptions {
    /// One statement, which may have to be prepared.
    fn from(operation: &'static str) -> Self {
        Self { operation, replies: 2, transaction: false }
    }
}

impl CallOptions {
    /// With at most this many replies.
    pub(crate) fn replies(self, replies: u32) -> Self {
        Self { replies, ..self }
    }

    /// With a transaction.
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

    /// The number of connections lost so far: the statements sent on them may still be executing.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Runs `work` once, on a connection and in a task.
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
                // The caller was dropped. Nothing was sent.
                conn.give_back();
                return Err(SessionError::Ended(call.operation));
            }
            match timeout(patience * call.replies, catch_panic(work(&mut conn))).await {
                Ok(Ok(value)) => {
                    conn.give_back();
                    Ok(value)
                }
                Ok(Err(error)) if is_reply_timeout(&error) => {
                    conn.abandon(patience);
                    Err(SessionError::TimedOut)
                }
                Ok(Err(error)) => {
                    if is_lost(&error) {
                        pool.close_idle();
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
                    Err(SessionError::TimedOut)
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

    /// Runs `work` on a connection, in a task. Conflicts and stale statements are retried; lost connections too, if
    /// `repeatable` says that a repetition after a lost reply has the same effect.
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

    /// The id of a scope, inserted in its own transaction so that no rollback removes it.
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

    /// The time of the server, and the fence floor.
    pub(crate) async fn moment(&self) -> Result<Moment, SessionError> {
        let schema = self.schema.clone();
        self.run_with_retry(READ, true, move |conn| {
            let schema = schema.clone();
            Box::pin(async move { moment(conn, &schema).await })
        })
        .await
    }
}

/// Reads the time of the server and the largest fence of purged records.
pub(crate) async fn moment(conn: &mut PgConnection, schema: &str) -> Result<Moment, sqlx::Error> {
    let sql = format!("SELECT {}, value FROM {schema}.meta WHERE name {EQ} 'fence_floor'", row::NOW);
    let row = query(AssertSqlSafe(sql)).fetch_one(conn).await?;
    let number = |n| Ok::<_, sqlx::Error>(u64::try_from(row.try_get::<i64, _>(n)?).unwrap_or(0));
    Ok(Moment { now: number(0)?, fence_floor: number(1)? })
}

/// Waits for one reply. After `patience` it fails with an error for which the connection is abandoned.
pub(crate) async fn with_reply_timeout<T>(
    patience: Duration,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(patience, statement)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::Error::from(std::io::ErrorKind::TimedOut))))
}

fn is_reply_timeout(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut)
}

/// The failure of a call.
pub(crate) enum SessionError {
    /// The driver or the server reported an error.
    Failed(sqlx::Error),
    /// No reply within the timeout; the outcome is unknown.
    TimedOut,
    /// The runtime ended, or the caller was dropped, before the call did.
    Ended(&'static str),
}

impl From<sqlx::Error> for SessionError {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

impl SessionError {
    /// The error for the caller of `operation`.
    pub(crate) fn into_error(self, operation: &'static str) -> Error {
        match self {
            Self::Failed(error) => store_error(operation, error),
            Self::TimedOut => {
                let context = "no reply within statement_timeout; the outcome is unknown";
                Error::new(ErrorKind::Timeout, operation, context)
            }
            Self::Ended(operation) => {
                let context = "the runtime ended before the call did; the outcome is unknown";
                Error::new(ErrorKind::Unavailable, operation, context)
            }
        }
    }
}
