//! The single writer: one connection that runs one transaction after the other, each shared by queued batches: [`Writer`].
//!
//! A batch is queued; then a task waits for the connection and runs *all* batches queued by then in one transaction. So batches
//! that arrive during a write share the next disk sync, and a dropped call leaves no transaction open: the task completes it.

mod connection;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use onceward::store::transition::{Moment, Record, Step};
use onceward::{Error, ErrorKind, Key, Scope};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Row, query};
use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::clock::{self, Clock, ClockAnchor, ClockReading, MetaValues};
use crate::error::store_error;
use crate::row;

pub(crate) use connection::{WriterConnection, connect};

/// Items written in one transaction at most, unless a single batch has more.
const MAX_ITEMS: usize = 4_096;

/// The operation, as errors name it.
pub(crate) const WRITE: &str = "write to the SQLite store";

/// A queued batch.
pub(crate) trait QueuedBatch: Send {
    fn scope(&self) -> &Scope;
    fn keys(&self) -> Vec<Key>;
    /// Applies the transition of item `n` and keeps its result. True if the record must be written.
    fn decide(&mut self, n: usize, record: Result<&mut Record, Error>, at: Moment) -> bool;
    /// Discards all results, for another attempt.
    fn reset(&mut self);
    /// Sends the results to the caller, or `error` for every item.
    fn finish(self: Box<Self>, error: Option<Error>);
}

/// A queued batch with items `I` and results `T`.
struct QueuedCall<I, T, K, D> {
    scope: Scope,
    items: Vec<I>,
    key: K,
    decide: D,
    answers: Vec<Result<T, Error>>,
    reply: oneshot::Sender<Vec<Result<T, Error>>>,
}

impl<I, T, K, D> QueuedBatch for QueuedCall<I, T, K, D>
where
    I: Send,
    T: Send,
    K: Fn(&I) -> Key + Send,
    D: Fn(&mut Record, Moment, &I) -> Step<T> + Send,
{
    fn scope(&self) -> &Scope {
        &self.scope
    }

    fn keys(&self) -> Vec<Key> {
        self.items.iter().map(&self.key).collect()
    }

    fn decide(&mut self, n: usize, record: Result<&mut Record, Error>, at: Moment) -> bool {
        match record {
            Ok(record) => {
                let Step { answer, changed } = (self.decide)(record, at, &self.items[n]);
                self.answers.push(Ok(answer));
                changed
            }
            Err(error) => {
                self.answers.push(Err(error));
                false
            }
        }
    }

    fn reset(&mut self) {
        self.answers.clear();
    }

    fn finish(mut self: Box<Self>, error: Option<Error>) {
        if let Some(error) = error {
            self.answers = self.items.iter().map(|_| Err(error.clone())).collect();
        }
        // A dropped caller needs no reply.
        let _ = self.reply.send(self.answers);
    }
}

/// The writer and its queue. Clones share both.
#[derive(Clone)]
pub(crate) struct Writer {
    slot: Arc<tokio::sync::Mutex<WriterConnection>>,
    queue: Arc<Mutex<VecDeque<Box<dyn QueuedBatch>>>>,
    scopes: Arc<Mutex<HashMap<Scope, i64>>>,
    clock: Clock,
    /// The clock anchor of the file when it was last read.
    anchor: Arc<Mutex<Option<ClockAnchor>>>,
}

impl Writer {
    pub(crate) fn new(options: SqliteConnectOptions, clock: Clock) -> Self {
        Self {
            slot: Arc::new(tokio::sync::Mutex::new(WriterConnection::new(options))),
            queue: Arc::default(),
            scopes: Arc::default(),
            clock,
            anchor: Arc::default(),
        }
    }

    /// Waits for exclusive use of the connection, in FIFO order.
    pub(crate) async fn turn(&self) -> OwnedMutexGuard<WriterConnection> {
        let mut slot = self.slot.clone().lock_owned().await;
        if slot.unfinished {
            slot.reset().await;
        }
        slot
    }

    /// The approximate time of the store, for reads. A transaction that writes uses [`time`](Self::time).
    pub(crate) fn now(&self) -> u64 {
        self.clock.read(*self.lock_anchor()).now
    }

    /// The time of the open transaction, by the clock that all processes share. Its readings are ordered as the transactions.
    pub(crate) async fn time(&self, conn: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
        let meta = clock::read_meta(conn).await?;
        self.time_by(conn, &meta).await
    }

    async fn time_by(&self, conn: &mut SqliteConnection, meta: &MetaValues) -> Result<u64, sqlx::Error> {
        let ClockReading { now, anchor } = self.clock.read(meta.anchor);
        if Some(anchor) != meta.anchor {
            clock::set_anchor(conn, anchor).await?;
        }
        *self.lock_anchor() = Some(anchor);
        Ok(now)
    }

    /// Reads the clock anchor of the file without a transaction.
    pub(crate) async fn read_clock(&self, conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let meta = clock::read_meta(conn).await?;
        *self.lock_anchor() = meta.anchor;
        Ok(())
    }

    fn lock_anchor(&self) -> std::sync::MutexGuard<'_, Option<ClockAnchor>> {
        self.anchor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a batch and writes it.
    ///
    /// # Cancel safety
    /// A dropped call is completed by a task.
    pub(crate) async fn call<I, T>(
        &self,
        scope: &Scope,
        items: Vec<I>,
        key: impl Fn(&I) -> Key + Send + 'static,
        decide: impl Fn(&mut Record, Moment, &I) -> Step<T> + Send + 'static,
    ) -> Vec<Result<T, Error>>
    where
        I: Send + 'static,
        T: Send + 'static,
    {
        if items.is_empty() {
            return Vec::new();
        }
        let count = items.len();
        let (reply, answers) = oneshot::channel();
        let answers_of = Vec::with_capacity(count);
        let call = QueuedCall { scope: scope.clone(), items, key, decide, answers: answers_of, reply };
        self.lock_queue().push_back(Box::new(call));
        let writer = self.clone();
        tokio::spawn(async move { writer.run_queued().await });
        answers.await.unwrap_or_else(|_| {
            let context = "the runtime ended before the write did; the outcome is unknown";
            (0..count).map(|_| Err(Error::new(ErrorKind::Unavailable, WRITE, context))).collect()
        })
    }

    /// Runs all queued batches in one transaction. There is one such task for every batch, so none stays queued.
    async fn run_queued(&self) {
        let mut slot = self.turn().await;
        let mut batches = self.take_queued();
        if batches.is_empty() {
            return;
        }
        match self.transact(&mut slot, &mut batches).await {
            Ok(()) => batches.into_iter().for_each(|batch| batch.finish(None)),
            Err(error) if error.is_retryable() || batches.len() == 1 => {
                batches.into_iter().for_each(|batch| batch.finish(Some(error.clone())));
            }
            // One of them cannot be written: each is written alone, so that the others are not affected.
            Err(_) => {
                for mut batch in batches {
                    batch.reset();
                    let mut alone = [batch];
                    let outcome = self.transact(&mut slot, &mut alone).await;
                    let [batch] = alone;
                    batch.finish(outcome.err());
                }
            }
        }
    }

    fn take_queued(&self) -> Vec<Box<dyn QueuedBatch>> {
        let mut queue = self.lock_queue();
        let mut items = 0;
        let mut count = 0;
        for batch in queue.iter() {
            items += batch.keys().len();
            if count > 0 && items > MAX_ITEMS {
                break;
            }
            count += 1;
        }
        queue.drain(..count).collect()
    }

    async fn transact(
        &self,
        slot: &mut WriterConnection,
        batches: &mut [Box<dyn QueuedBatch>],
    ) -> Result<(), Error> {
        let failed = |error| store_error(WRITE, error);
        let scopes: Vec<Scope> = batches.iter().map(|batch| batch.scope().clone()).collect();
        let mut ids = Vec::with_capacity(scopes.len());
        for scope in &scopes {
            ids.push(self.scope_id(slot, scope).await.map_err(failed)?);
        }
        slot.begin().await.map_err(failed)?;
        let outcome = match slot.conn().await {
            Ok(conn) => self.write(conn, batches, &ids).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => slot.commit().await.map_err(failed),
            Err(error) => {
                slot.rollback().await;
                Err(failed(error))
            }
        }
    }

    async fn write(
        &self,
        conn: &mut SqliteConnection,
        batches: &mut [Box<dyn QueuedBatch>],
        scopes: &[i64],
    ) -> Result<(), sqlx::Error> {
        let meta = clock::read_meta(&mut *conn).await?;
        let now = self.time_by(&mut *conn, &meta).await?;
        write(conn, now, meta.fence_floor, batches, scopes).await
    }

    /// The id of a scope, inserted in its own transaction so that no rollback removes it.
    pub(crate) async fn scope_id(
        &self,
        slot: &mut WriterConnection,
        scope: &Scope,
    ) -> Result<i64, sqlx::Error> {
        let known = self.scopes.lock().unwrap_or_else(PoisonError::into_inner).get(scope).copied();
        if let Some(id) = known {
            return Ok(id);
        }
        let conn = slot.conn().await?;
        let find = || query("SELECT id FROM onceward_scopes WHERE name = ?").bind(scope.as_str());
        let id = match find().fetch_optional(&mut *conn).await? {
            Some(row) => row.try_get(0)?,
            None => {
                query("INSERT INTO onceward_scopes (name) VALUES (?) ON CONFLICT (name) DO NOTHING")
                    .bind(scope.as_str())
                    .execute(&mut *conn)
                    .await?;
                find().fetch_one(&mut *conn).await?.try_get(0)?
            }
        };
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner).insert(scope.clone(), id);
        Ok(id)
    }

    fn lock_queue(&self) -> std::sync::MutexGuard<'_, VecDeque<Box<dyn QueuedBatch>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Applies all batches, one after the other, and writes changed records.
async fn write(
    conn: &mut SqliteConnection,
    now: u64,
    floor_found: u64,
    batches: &mut [Box<dyn QueuedBatch>],
    scopes: &[i64],
) -> Result<(), sqlx::Error> {
    let mut floor = floor_found;
    for (batch, &scope) in batches.iter_mut().zip(scopes) {
        let keys = batch.keys();
        let mut records = row::read(conn, scope, &keys).await?;
        let at = Moment { now, fence_floor: floor };
        let mut changed = Vec::with_capacity(keys.len());
        for (n, key) in keys.iter().enumerate() {
            match records.entry(*key).or_insert_with(|| Ok(Record::nothing())) {
                Ok(record) => {
                    let fence = record.fence;
                    if batch.decide(n, Ok(record), at) {
                        changed.push(*key);
                    }
                    if record.fence < fence {
                        floor = floor.max(fence);
                    }
                }
                Err(error) => {
                    batch.decide(n, Err(error.clone()), at);
                }
            }
        }
        changed.sort_unstable();
        changed.dedup();
        let (mut kept, mut removed) = (Vec::with_capacity(changed.len()), Vec::new());
        for key in changed {
            match records.get(&key) {
                Some(Ok(record)) if record.is_nothing() => removed.push(key),
                Some(Ok(record)) => kept.push((key, record)),
                _ => {}
            }
        }
        row::write(conn, scope, &kept).await?;
        row::delete(conn, scope, &removed).await?;
    }
    if floor > floor_found {
        raise_fence_floor(conn, floor).await?;
    }
    Ok(())
}

/// Raises the fence floor: the largest fence of removed records.
pub(crate) async fn raise_fence_floor(conn: &mut SqliteConnection, floor: u64) -> Result<(), sqlx::Error> {
    query("UPDATE onceward_meta SET value = max(value, ?) WHERE name = 'fence_floor'")
        .bind(row::integer(floor))
        .execute(conn)
        .await?;
    Ok(())
}

/// The outcome of a spawned task; a panic is resumed in the caller.
pub(crate) fn join_task<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T, Error> {
    outcome.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::new(ErrorKind::Unavailable, WRITE, "the runtime ended before the write did"),
    })
}
