//! Applies transitions to a batch of keys under row locks: [`LockedBatch`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use onceward::store::KeyState;
use onceward::store::transition::{Moment, Record, Step};
use onceward::{Error, ErrorKind, Key, Scope};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, query};

use crate::error::{is_lock_timeout, row_removed};
use crate::row;
use crate::session::{CallOptions, SessionError, Sessions, WRITE, moment, with_reply_timeout};

/// How long a table lock is waited for when locked rows are skipped.
const TABLE_WAIT: Duration = Duration::from_millis(20);

/// Replies of the server in one batch at most.
const REPLIES: u32 = 10;

/// A transition of the protocol.
type Decide<I, T> = dyn Fn(&mut Record, Moment, &I) -> Step<T> + Send + Sync;

/// Makes the result for a key whose row another transaction has locked.
type ContendedAnswer<T> = Box<dyn Fn(Key) -> Result<T, Error> + Send + Sync>;

/// A batch of requests, and the transition for each.
pub(crate) struct LockedBatch<I, T> {
    pub(crate) items: Vec<I>,
    pub(crate) key: fn(&I) -> Key,
    pub(crate) decide: Arc<Decide<I, T>>,
    /// The result for a key whose row another transaction has locked; without one it is an error.
    pub(crate) contended: Option<ContendedAnswer<T>>,
    pub(crate) lock_policy: LockPolicy,
    /// Whether keys without a row get one first, so that there is a row to lock.
    pub(crate) occupy: bool,
    /// Whether a repetition after a lost reply has the same effect.
    pub(crate) repeatable: bool,
}

/// How a batch treats rows that another transaction has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockPolicy {
    /// Waits for them, for at most `lock_timeout`.
    Wait,
    /// Skips them: `lock_timeout` has passed already.
    Skip,
}

type Results<T> = Vec<Result<T, Error>>;

/// The results in the order of the keys; `None` for a key whose row is locked.
type Decided<T> = Vec<Option<Result<T, Error>>>;

impl Sessions {
    /// Applies a batch under row locks, and writes changed records, in one transaction. Keys whose rows another transaction has
    /// locked for longer than `lock_timeout` are left out. A lock of the whole table is an error of all items.
    pub(crate) async fn call<I, T>(&self, scope: &Scope, batch: LockedBatch<I, T>) -> Results<T>
    where
        I: Clone + Send + Sync + 'static,
        T: Send + 'static,
    {
        if batch.items.is_empty() {
            return Vec::new();
        }
        let all = |error: Error| (0..batch.items.len()).map(|_| Err(error.clone())).collect();
        let scope = match self.scope_id(scope).await {
            Ok(scope) => scope,
            Err(error) => return all(error.into_error(WRITE)),
        };
        // Every transaction takes its locks in key order, so there are no deadlocks.
        let mut order: Vec<usize> = (0..batch.items.len()).collect();
        order.sort_unstable_by_key(|n| (batch.key)(&batch.items[*n]));
        let decided = match self.decide(scope, &batch, &order, batch.lock_policy).await {
            Err(SessionError::Failed(error))
                if is_lock_timeout(&error) && batch.lock_policy == LockPolicy::Wait =>
            {
                self.decide(scope, &batch, &order, LockPolicy::Skip).await
            }
            outcome => outcome,
        };
        let decided = match decided {
            Ok(decided) => decided,
            Err(SessionError::Failed(error)) if is_lock_timeout(&error) => {
                return all(table_locked(error));
            }
            Err(error) => return all(error.into_error(WRITE)),
        };
        let mut answers: Vec<Option<Result<T, Error>>> = batch.items.iter().map(|_| None).collect();
        for (n, answer) in order.into_iter().zip(decided) {
            let contended = |key| match &batch.contended {
                Some(contended) => contended(key),
                None => Err(lock_timeout_error()),
            };
            answers[n] = Some(answer.unwrap_or_else(|| contended((batch.key)(&batch.items[n]))));
        }
        let missing = || Err(Error::new(ErrorKind::Internal, WRITE, "a request has no result"));
        answers.into_iter().map(|answer| answer.unwrap_or_else(missing)).collect()
    }

    async fn decide<I, T>(
        &self,
        scope: i64,
        batch: &LockedBatch<I, T>,
        order: &[usize],
        lock_policy: LockPolicy,
    ) -> Result<Decided<T>, SessionError>
    where
        I: Clone + Send + Sync + 'static,
        T: Send + 'static,
    {
        let items: Arc<[I]> = order.iter().map(|n| batch.items[*n].clone()).collect();
        let keys: Arc<[Key]> = items.iter().map(batch.key).collect();
        let (decide, narrow) = (batch.decide.clone(), self.pool.is_narrow());
        let locks =
            RowLocks { schema: self.schema.clone(), scope, occupy: batch.occupy, patience: self.patience };
        let call = CallOptions::from(WRITE).replies(REPLIES).transaction();
        self.run_with_retry(call, batch.repeatable, move |conn| {
            let (locks, decide, items, keys) = (locks.clone(), decide.clone(), items.clone(), keys.clone());
            Box::pin(async move {
                let (rows, held) = match lock_policy {
                    LockPolicy::Wait => (locks.wait(conn, &keys).await?, HashSet::new()),
                    LockPolicy::Skip => locks.skip(conn, &keys).await?,
                };
                let RowLocks { schema, patience, .. } = locks;
                // Read after locking: the previous holders of the locks wrote with an earlier time.
                let at = with_reply_timeout(patience * 2, moment(conn, &schema)).await?;
                let mut records = HashMap::with_capacity(rows.len());
                for found in &rows {
                    records.insert(row::key_of(found)?, row::record_of(found));
                }
                let mut answers = Vec::with_capacity(items.len());
                let (mut changed, mut overwritten) = (Vec::new(), 0);
                for (item, key) in items.iter().zip(keys.iter()) {
                    if held.contains(key) {
                        answers.push(None);
                        continue;
                    }
                    answers.push(Some(match records.entry(*key).or_insert_with(|| Ok(Record::nothing())) {
                        Ok(record) => {
                            let fence = record.fence;
                            let step = decide(record, at, item);
                            if step.changed {
                                changed.push(*key);
                            }
                            if record.fence < fence && record.state == KeyState::Completed {
                                overwritten = fence.max(overwritten);
                            }
                            record.fence = match record.state {
                                KeyState::Completed => record.fence,
                                _ => record.fence.max(fence),
                            };
                            Ok(step.answer)
                        }
                        Err(error) => Err(error.clone()),
                    }));
                }
                changed.dedup();
                let kept: Vec<(Key, &Record)> =
                    changed.iter().filter_map(|key| Some((*key, records.get(key)?.as_ref().ok()?))).collect();
                if !kept.is_empty() {
                    with_reply_timeout(patience * 2, row::write(conn, &schema, scope, &kept, at.now, narrow))
                        .await?;
                }
                if overwritten > 0 {
                    // A completion keeps its own fence, so that its repetition is recognised. The floor keeps later fences above
                    // the overwritten one.
                    with_reply_timeout(patience * 2, raise_floor(conn, &schema, overwritten)).await?;
                }
                with_reply_timeout(patience, conn.execute("COMMIT")).await?;
                Ok(answers)
            })
        })
        .await
    }
}

/// The error for a key whose row another transaction has locked. This call has changed nothing.
pub(crate) fn lock_timeout_error() -> Error {
    let context = "another transaction has locked the key's row for longer than lock_timeout";
    Error::new(ErrorKind::Timeout, WRITE, context)
}

fn table_locked(error: sqlx::Error) -> Error {
    let context = "another transaction has locked the table for longer than lock_timeout (VACUUM FULL, a migration, or LOCK TABLE?)";
    Error::new(ErrorKind::Timeout, WRITE, context).with_source(crate::error::ServerError::from(error))
}

async fn raise_floor(conn: &mut PgConnection, schema: &str, fence: u64) -> Result<(), sqlx::Error> {
    let sql = format!("UPDATE {schema}.meta SET value = $1 WHERE name = 'fence_floor' AND value < $1");
    query(AssertSqlSafe(sql)).bind(row::integer(fence)).execute(conn).await.map(drop)
}

/// Locks the rows of a batch, in its transaction.
#[derive(Clone)]
struct RowLocks {
    schema: Arc<str>,
    scope: i64,
    occupy: bool,
    patience: Duration,
}

impl RowLocks {
    /// Locks all rows, waiting for each.
    async fn wait(&self, conn: &mut PgConnection, keys: &[Key]) -> Result<Vec<PgRow>, sqlx::Error> {
        with_reply_timeout(self.patience, conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED")).await?;
        if self.occupy {
            with_reply_timeout(self.patience * 2, row::occupy(conn, &self.schema, self.scope, keys)).await?;
        }
        let rows = with_reply_timeout(self.patience * 2, row::lock(conn, &self.schema, self.scope, keys, ""))
            .await?;
        if self.occupy && rows.len() < keys.len() {
            // A purge removed a row between the two statements.
            return Err(row_removed());
        }
        Ok(rows)
    }

    /// Locks the rows that no other session has locked; returns them and the keys of the others.
    async fn skip(
        &self,
        conn: &mut PgConnection,
        keys: &[Key],
    ) -> Result<(Vec<PgRow>, HashSet<Key>), sqlx::Error> {
        let Self { schema, scope, occupy, patience } = self;
        // With the table lock that writing needs anyway: a lock of the whole table is detected here, and is not contention.
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {}; \
             LOCK TABLE {schema}.keys IN ROW EXCLUSIVE MODE",
            TABLE_WAIT.as_millis()
        );
        with_reply_timeout(*patience, sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *conn)).await?;
        let mut rows =
            with_reply_timeout(*patience * 2, row::lock(conn, schema, *scope, keys, "SKIP LOCKED")).await?;
        let mut held: HashSet<Key> = keys.iter().copied().collect();
        for found in &rows {
            held.remove(&row::key_of(found)?);
        }
        let rest: Vec<Key> = keys.iter().filter(|key| held.contains(key)).copied().collect();
        if rest.is_empty() {
            return Ok((rows, held));
        }
        let visible = with_reply_timeout(*patience * 2, row::existing(conn, schema, *scope, &rest)).await?;
        let missing: Vec<Key> = rest.into_iter().filter(|key| !visible.contains(key)).collect();
        if !occupy {
            for key in missing {
                held.remove(&key);
            }
        } else if !missing.is_empty() {
            // Some of these may have uncommitted rows.
            with_reply_timeout(*patience * 2, row::occupy_free(conn, schema, *scope, &missing)).await?;
            for found in
                with_reply_timeout(*patience * 2, row::lock(conn, schema, *scope, &missing, "SKIP LOCKED"))
                    .await?
            {
                held.remove(&row::key_of(&found)?);
                rows.push(found);
            }
        }
        Ok((rows, held))
    }
}
