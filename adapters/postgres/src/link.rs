//! The store's own connections, and the transaction that decides about a batch under row locks.
//!
//! Everything runs in tasks of its own: a caller who goes away leaves no connection inside a transaction (a cancelled
//! `BEGIN` would poison the pool), and a connection whose transaction did not end as it should is closed.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use onceward::store::transition::{Moment, Record, Step};
use onceward::{Error, ErrorKind, Key, Scope};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Postgres, Row, query};

use crate::error::{is_conflict, is_lock_timeout, is_lost, store_error};
use crate::row;

/// What was attempted, for errors.
pub(crate) const WRITE: &str = "write to the Postgres store";
pub(crate) const READ: &str = "read from the Postgres store";

/// How long a lock is waited for where its holder has been waited for already.
pub(crate) const SHORT_WAIT: Duration = Duration::from_millis(20);

/// How often work that another transaction thwarted is tried, in all.
const TRIES: u32 = 6;

type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, sqlx::Error>> + Send + 'c>>;

/// A transition of the protocol.
type Decide<I, T> = dyn Fn(&mut Record, Moment, &I) -> Step<T> + Send + Sync;

/// The pool and what every statement needs. Clones share it.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) pool: PgPool,
    /// Quoted.
    pub(crate) schema: Arc<str>,
    /// After which a connection is given up: a second more than the server gives a statement.
    pub(crate) patience: Duration,
    scopes: Arc<Mutex<HashMap<Scope, i64>>>,
    /// Up to when this worker has removed expired rows in its present pass.
    pub(crate) purged_to: Arc<AtomicI64>,
}

/// A batch and how each of its items is decided.
pub(crate) struct Batch<I, T> {
    pub(crate) items: Vec<I>,
    pub(crate) key: fn(&I) -> Key,
    pub(crate) decide: Arc<Decide<I, T>>,
    /// The answer for a key whose row another transaction holds; without one it is an error.
    pub(crate) held: Option<Box<dyn Fn(Key) -> T + Send + Sync>>,
    /// For how long a lock is waited for; the store's `lock_timeout` unless told.
    pub(crate) wait: Option<Duration>,
    /// Keys without a row get one first: what is decided about nothing may have to be written.
    pub(crate) occupy: bool,
    /// A repeat after a lost reply answers the same.
    pub(crate) repeatable: bool,
}

type Answers<T> = Vec<Result<T, Error>>;

impl Link {
    pub(crate) fn new(pool: PgPool, schema: String, statement_timeout: Duration) -> Self {
        let patience = statement_timeout + Duration::from_secs(1);
        Self { pool, schema: schema.into(), patience, scopes: Arc::default(), purged_to: Arc::default() }
    }

    /// Runs `work` on a connection, in a task. The connection is closed if it fails or takes too long.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl for<'c> FnOnce(&'c mut PgConnection) -> Work<'c, T> + Send + 'static,
    ) -> Result<T, Attempt> {
        let (pool, patience) = (self.pool.clone(), self.patience);
        let task = tokio::spawn(async move {
            let mut conn: PoolConnection<Postgres> = pool.acquire().await?;
            match tokio::time::timeout(patience, work(&mut conn)).await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(error)) => {
                    conn.close_on_drop();
                    Err(Attempt::Failed(error))
                }
                Err(_) => {
                    conn.close_on_drop();
                    Err(Attempt::Silent)
                }
            }
        });
        match task.await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Attempt::Ended(operation)),
            },
        }
    }

    /// As [`run`](Self::run), tried anew on another connection where that may help and cannot hurt.
    pub(crate) async fn run_again<T: Send + 'static>(
        &self,
        operation: &'static str,
        repeatable: bool,
        work: impl for<'c> Fn(&'c mut PgConnection) -> Work<'c, T> + Clone + Send + 'static,
    ) -> Result<T, Attempt> {
        let mut tried = 0;
        loop {
            tried += 1;
            let attempt = work.clone();
            let outcome = self.run(operation, move |conn| attempt(conn)).await;
            let again = match &outcome {
                Err(Attempt::Failed(error)) => is_conflict(error) || (repeatable && is_lost(error)),
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
    pub(crate) async fn scope_id(&self, scope: &Scope) -> Result<i64, Attempt> {
        if let Some(id) = self.known_scopes().get(scope) {
            return Ok(*id);
        }
        let (schema, name) = (self.schema.clone(), scope.as_str().to_owned());
        let id = self
            .run_again(WRITE, true, move |conn| {
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

    /// Decides about a batch under row locks, and writes what changed, in one transaction. Keys that another
    /// transaction holds do not keep the others waiting: the batch is halved until they are found, and their holders are
    /// waited for only once.
    pub(crate) async fn call<I, T>(&self, scope: &Scope, batch: Batch<I, T>) -> Answers<T>
    where
        I: Clone + Send + Sync + 'static,
        T: Send + 'static,
    {
        if batch.items.is_empty() {
            return Vec::new();
        }
        let all = |error: Error| (0..batch.items.len()).map(|_| Err(error.replicate())).collect();
        let scope = match self.scope_id(scope).await {
            Ok(scope) => scope,
            Err(attempt) => return all(attempt.told(WRITE)),
        };
        // Every transaction takes its locks in the order of the keys: so no two wait for each other.
        let mut order: Vec<usize> = (0..batch.items.len()).collect();
        order.sort_unstable_by_key(|n| (batch.key)(&batch.items[*n]));
        let mut answers: Vec<Option<Result<T, Error>>> = batch.items.iter().map(|_| None).collect();
        let mut parts = vec![(order, batch.wait)];
        while let Some((part, wait)) = parts.pop() {
            match self.decide(scope, &batch, &part, wait).await {
                Ok(decided) => {
                    for (n, answer) in part.into_iter().zip(decided) {
                        answers[n] = Some(answer);
                    }
                }
                Err(Attempt::Failed(error)) if is_lock_timeout(&error) && part.len() > 1 => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left].map(|half| (half.to_vec(), Some(SHORT_WAIT))));
                }
                Err(attempt) => {
                    let blocked = matches!(&attempt, Attempt::Failed(error) if is_lock_timeout(error));
                    let error = attempt.told(WRITE);
                    for n in part {
                        answers[n] = Some(match &batch.held {
                            Some(held) if blocked => Ok(held((batch.key)(&batch.items[n]))),
                            _ => Err(error.replicate()),
                        });
                    }
                }
            }
        }
        let missing = || Err(Error::new(ErrorKind::Internal, WRITE, "an item was left without an answer"));
        answers.into_iter().map(|answer| answer.unwrap_or_else(missing)).collect()
    }

    async fn decide<I, T>(
        &self,
        scope: i64,
        batch: &Batch<I, T>,
        part: &[usize],
        wait: Option<Duration>,
    ) -> Result<Answers<T>, Attempt>
    where
        I: Clone + Send + Sync + 'static,
        T: Send + 'static,
    {
        let items: Arc<[I]> = part.iter().map(|n| batch.items[*n].clone()).collect();
        let keys: Arc<[Key]> = items.iter().map(batch.key).collect();
        let (schema, decide, occupy) = (self.schema.clone(), batch.decide.clone(), batch.occupy);
        let limit = wait.map(|wait| format!("; SET LOCAL lock_timeout = {}", wait.as_millis().max(1)));
        let begin: Arc<str> =
            format!("BEGIN ISOLATION LEVEL READ COMMITTED{}", limit.unwrap_or_default()).into();
        self.run_again(WRITE, batch.repeatable, move |conn| {
            let (schema, decide) = (schema.clone(), decide.clone());
            let (items, keys, begin) = (items.clone(), keys.clone(), begin.clone());
            Box::pin(async move {
                sqlx::raw_sql(AssertSqlSafe(&*begin)).execute(&mut *conn).await?;
                if occupy {
                    row::occupy(conn, &schema, scope, &keys).await?;
                }
                let rows = row::lock(conn, &schema, scope, &keys).await?;
                // Only now: whoever held the locks before has written with an earlier time.
                let at = moment(conn, &schema).await?;
                let mut records = HashMap::with_capacity(rows.len());
                for found in &rows {
                    records.insert(row::key_of(found)?, row::record_of(found));
                }
                if occupy && records.len() < keys.len() {
                    // A purge took a row between the two statements.
                    return Err(sqlx::Error::Protocol("a row vanished".to_owned()));
                }
                let mut answers = Vec::with_capacity(items.len());
                let mut changed = Vec::new();
                for (item, key) in items.iter().zip(keys.iter()) {
                    match records.entry(*key).or_insert_with(|| Ok(Record::nothing())) {
                        Ok(record) => {
                            let fence = record.fence;
                            let step = decide(record, at, item);
                            record.fence = record.fence.max(fence);
                            if step.changed {
                                changed.push(*key);
                            }
                            answers.push(Ok(step.answer));
                        }
                        Err(error) => answers.push(Err(error.replicate())),
                    }
                }
                changed.dedup();
                let kept: Vec<(Key, &Record)> =
                    changed.iter().filter_map(|key| Some((*key, records.get(key)?.as_ref().ok()?))).collect();
                if !kept.is_empty() {
                    row::write(conn, &schema, scope, &kept, at.now).await?;
                }
                conn.execute("COMMIT").await?;
                Ok(answers)
            })
        })
        .await
    }

    /// The store's time.
    pub(crate) async fn moment(&self) -> Result<Moment, Attempt> {
        let schema = self.schema.clone();
        self.run_again(READ, true, move |conn| {
            let schema = schema.clone();
            Box::pin(async move { moment(conn, &schema).await })
        })
        .await
    }
}

/// The server's time, and the fences that purged records had.
pub(crate) async fn moment(conn: &mut PgConnection, schema: &str) -> Result<Moment, sqlx::Error> {
    let sql = format!("SELECT {}, value FROM {schema}.meta WHERE name = 'fence_floor'", row::NOW);
    let row = query(AssertSqlSafe(sql)).fetch_one(conn).await?;
    let number = |n| Ok::<_, sqlx::Error>(u64::try_from(row.try_get::<i64, _>(n)?).unwrap_or(0));
    Ok(Moment { now: number(0)?, fence_floor: number(1)? })
}

/// How an attempt failed.
pub(crate) enum Attempt {
    /// With an error.
    Failed(sqlx::Error),
    /// The server said nothing for too long; what was asked may have happened.
    Silent,
    /// The runtime ended.
    Ended(&'static str),
}

impl From<sqlx::Error> for Attempt {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

impl Attempt {
    /// As the caller is told.
    pub(crate) fn told(self, operation: &'static str) -> Error {
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
