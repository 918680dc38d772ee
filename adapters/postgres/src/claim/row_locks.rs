//! Decides about a batch of keys under row locks: [`LockedBatch`].

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

/// How long a lock of the whole table is waited for while held keys are passed over.
const TABLE_WAIT: Duration = Duration::from_millis(20);

/// How many replies a batch waits for at most.
const REPLIES: u32 = 10;

/// A transition of the protocol.
type Decide<I, T> = dyn Fn(&mut Record, Moment, &I) -> Step<T> + Send + Sync;

/// The answer for a key that another transaction holds.
type ContendedAnswer<T> = Box<dyn Fn(Key) -> Result<T, Error> + Send + Sync>;

/// A batch and how each of its items is decided.
pub(crate) struct LockedBatch<I, T> {
    pub(crate) items: Vec<I>,
    pub(crate) key: fn(&I) -> Key,
    pub(crate) decide: Arc<Decide<I, T>>,
    /// The answer for a key whose row another transaction holds; without one it is an error.
    pub(crate) held: Option<ContendedAnswer<T>>,
    pub(crate) first: LockPolicy,
    /// Keys without a row get one first: what is decided about nothing may have to be written.
    pub(crate) occupy: bool,
    /// A repeat after a lost with_reply_timeout answers the same.
    pub(crate) repeatable: bool,
}

/// What a batch does first about keys that another transaction holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockPolicy {
    /// It waits for them, as long as the store's `lock_timeout` allows.
    Wait,
    /// It passes over them: their holders have been waited for already.
    Skip,
}

type Answers<T> = Vec<Result<T, Error>>;

/// The answers for the items that could be decided, by their keys' place in the order.
type Decided<T> = Vec<Option<Result<T, Error>>>;

impl Sessions {
    /// Decides about a batch under row locks, and writes what changed, in one transaction. If another transaction holds some
    /// of its keys for longer than the lock timeout, the others are decided without them. A table that is locked as a whole
    /// is an error of all.
    pub(crate) async fn call<I, T>(&self, scope: &Scope, batch: LockedBatch<I, T>) -> Answers<T>
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
        // Every transaction takes its locks in the order of the keys: so no two wait for each other.
        let mut order: Vec<usize> = (0..batch.items.len()).collect();
        order.sort_unstable_by_key(|n| (batch.key)(&batch.items[*n]));
        let decided = match self.decide(scope, &batch, &order, batch.first).await {
            Err(SessionError::Failed(error))
                if is_lock_timeout(&error) && batch.first == LockPolicy::Wait =>
            {
                self.decide(scope, &batch, &order, LockPolicy::Skip).await
            }
            outcome => outcome,
        };
        let decided = match decided {
            Ok(decided) => decided,
            Err(SessionError::Failed(error)) if is_lock_timeout(&error) => {
                return all(blocked("the table", error));
            }
            Err(error) => return all(error.into_error(WRITE)),
        };
        let mut answers: Vec<Option<Result<T, Error>>> = batch.items.iter().map(|_| None).collect();
        for (n, answer) in order.into_iter().zip(decided) {
            let held = |key| match &batch.held {
                Some(held) => held(key),
                None => Err(lock_timeout_error()),
            };
            answers[n] = Some(answer.unwrap_or_else(|| held((batch.key)(&batch.items[n]))));
        }
        let missing = || Err(Error::new(ErrorKind::Internal, WRITE, "an item was left without an answer"));
        answers.into_iter().map(|answer| answer.unwrap_or_else(missing)).collect()
    }

    async fn decide<I, T>(
        &self,
        scope: i64,
        batch: &LockedBatch<I, T>,
        order: &[usize],
        first: LockPolicy,
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
                let (rows, held) = match first {
                    LockPolicy::Wait => (locks.wait(conn, &keys).await?, HashSet::new()),
                    LockPolicy::Skip => locks.skip(conn, &keys).await?,
                };
                let RowLocks { schema, patience, .. } = locks;
                // Only now: whoever held the locks before has written with an earlier time.
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
                    // A completion keeps its own fence, so that its repeat is recognised. Later claims stay above the one
                    // that was there.
                    with_reply_timeout(patience * 2, raise_floor(conn, &schema, overwritten)).await?;
                }
                with_reply_timeout(patience, conn.execute("COMMIT")).await?;
                Ok(answers)
            })
        })
        .await
    }
}

/// The error for a key whose row another transaction holds: what was asked for it has not happened, by this call.
pub(crate) fn lock_timeout_error() -> Error {
    let context = "another transaction holds the key's row for longer than lock_timeout";
    Error::new(ErrorKind::Timeout, WRITE, context)
}

fn blocked(what: &str, error: sqlx::Error) -> Error {
    let context = format!(
        "another transaction holds {what} for longer than lock_timeout (VACUUM FULL, a migration, or LOCK TABLE?)"
    );
    Error::new(ErrorKind::Timeout, WRITE, context).with_source(crate::error::ServerError::from(error))
}

async fn raise_floor(conn: &mut PgConnection, schema: &str, fence: u64) -> Result<(), sqlx::Error> {
    let sql = format!("UPDATE {schema}.meta SET value = $1 WHERE name = 'fence_floor' AND value < $1");
    query(AssertSqlSafe(sql)).bind(row::integer(fence)).execute(conn).await.map(drop)
}

/// How the rows of a batch are locked, in a transaction of its own.
#[derive(Clone)]
struct RowLocks {
    schema: Arc<str>,
    scope: i64,
    occupy: bool,
    patience: Duration,
}

impl RowLocks {
    /// All rows, waiting for each.
    async fn wait(&self, conn: &mut PgConnection, keys: &[Key]) -> Result<Vec<PgRow>, sqlx::Error> {
        with_reply_timeout(self.patience, conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED")).await?;
        if self.occupy {
            with_reply_timeout(self.patience * 2, row::occupy(conn, &self.schema, self.scope, keys)).await?;
        }
        let rows = with_reply_timeout(self.patience * 2, row::lock(conn, &self.schema, self.scope, keys, ""))
            .await?;
        if self.occupy && rows.len() < keys.len() {
            // A purge took a row between the two statements.
            return Err(row_removed());
        }
        Ok(rows)
    }

    /// The rows that no other session has locked, and the keys of the others: in one statement, however many those are.
    async fn skip(
        &self,
        conn: &mut PgConnection,
        keys: &[Key],
    ) -> Result<(Vec<PgRow>, HashSet<Key>), sqlx::Error> {
        let Self { schema, scope, occupy, patience } = self;
        // With the lock that writing takes anyway: a table that is locked as a whole shows here, and is no contention.
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
            // Of these, some may have rows that are not committed yet.
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
