//! A pool of connections whose opening has a time budget of its own: [`Pool`].
//!
//! Opening a connection takes several round trips. A caller waits for `connect_timeout` at most, but an opening that has
//! begun continues without the caller, and the next one uses the connection. So a slow server, such as an overloaded one, is
//! reached in the end.

mod abandoned;
mod opener;

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout};

pub(crate) use opener::{Session, SessionOpener};

/// Connections opened concurrently at most.
const MAX_OPENING: usize = 2;
/// An idle connection is closed after this time.
const MAX_IDLE: Duration = Duration::from_secs(600);
/// A connection is replaced at this age.
const MAX_AGE: Duration = Duration::from_secs(1_800);
/// Time limit for the outstanding replies of a returned connection.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// A bounded number of connections. Clones share them.
#[derive(Clone)]
pub(crate) struct Pool(Arc<PoolParts>);

struct PoolParts {
    opener: SessionOpener,
    limit: usize,
    /// The time limit of a caller that waits for a connection.
    wait: Duration,
    /// A permit for each connection that is in use or being opened.
    slots: Arc<Semaphore>,
    opening: Semaphore,
    idle: Mutex<Vec<IdleSession>>,
    returned: Notify,
    opened: AtomicU64,
}

struct IdleSession {
    session: Session,
    born: Instant,
    since: Instant,
}

/// A connection of a [`Pool`]. Dropping it closes it, unless [`give_back`](Self::give_back) was called.
pub(crate) struct PooledSession {
    session: Option<Session>,
    born: Instant,
    slot: Option<OwnedSemaphorePermit>,
    pool: Pool,
}

impl Pool {
    /// A pool of at most `limit` connections; it opens none yet. Callers wait for a connection for at most `wait`.
    pub(crate) fn new(opener: SessionOpener, limit: u32, wait: Duration) -> Self {
        let limit = limit as usize;
        Self(Arc::new(PoolParts {
            opener,
            limit,
            wait,
            slots: Arc::new(Semaphore::new(limit)),
            opening: Semaphore::new(MAX_OPENING),
            idle: Mutex::default(),
            returned: Notify::new(),
            opened: AtomicU64::new(0),
        }))
    }

    /// An idle connection, or a new one.
    ///
    /// # Errors
    /// The error of opening it, or `PoolTimedOut` after the pool's waiting time.
    ///
    /// # Cancel safety
    /// An opening that a dropped call has begun goes on, and its connection becomes idle.
    pub(crate) async fn acquire(&self) -> Result<PooledSession, sqlx::Error> {
        timeout(self.0.wait, self.acquire_patiently()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn acquire_patiently(&self) -> Result<PooledSession, sqlx::Error> {
        let slots = Arc::clone(&self.0.slots);
        let slot = slots.acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let slot = match self.take_idle(slot) {
            Ok(pooled) => return Ok(pooled),
            Err(slot) => slot,
        };
        let (sender, receiver) = oneshot::channel();
        let pool = self.clone();
        tokio::spawn(async move {
            let opened = pool.open(slot).await;
            if let Err(Ok(pooled)) = sender.send(opened) {
                // The caller was dropped: the connection becomes idle.
                pooled.give_back();
            }
        });
        receiver.await.unwrap_or(Err(sqlx::Error::PoolClosed))
    }

    /// Opens a connection, or uses one that became idle while waiting for a permit to open.
    async fn open(&self, mut slot: OwnedSemaphorePermit) -> Result<PooledSession, sqlx::Error> {
        let turn = loop {
            tokio::select! {
                biased;
                turn = self.0.opening.acquire() => break turn,
                () = self.0.returned.notified() => {}
            }
            slot = match self.take_idle(slot) {
                Ok(pooled) => return Ok(pooled),
                Err(slot) => slot,
            };
        };
        slot = match self.take_idle(slot) {
            Ok(pooled) => return Ok(pooled),
            Err(slot) => slot,
        };
        let session = self.0.opener.open().await?;
        drop(turn);
        self.0.opened.fetch_add(1, Ordering::Relaxed);
        Ok(PooledSession {
            session: Some(session),
            born: Instant::now(),
            slot: Some(slot),
            pool: self.clone(),
        })
    }

    fn take_idle(&self, slot: OwnedSemaphorePermit) -> Result<PooledSession, OwnedSemaphorePermit> {
        let mut idle = self.idle();
        idle.retain(|idle| idle.since.elapsed() < MAX_IDLE && idle.born.elapsed() < MAX_AGE);
        let Some(IdleSession { session, born, .. }) = idle.pop() else { return Err(slot) };
        Ok(PooledSession { session: Some(session), born, slot: Some(slot), pool: self.clone() })
    }

    /// Closes all idle connections, after the failure of another one suggests that they have failed as well.
    pub(crate) fn close_idle(&self) {
        self.idle().clear();
    }

    /// The number of connections opened so far.
    pub(crate) fn opened(&self) -> u64 {
        self.0.opened.load(Ordering::Relaxed)
    }

    /// The maximum number of concurrent connections.
    pub(crate) fn limit(&self) -> usize {
        self.0.limit
    }

    /// True if the encoding of the database cannot represent every character, as known once a connection was opened.
    pub(crate) fn is_narrow(&self) -> bool {
        self.0.opener.is_narrow()
    }

    /// Closes idle connections now, and others when they are returned. Waits until the idle ones are closed.
    pub(crate) async fn close(&self) {
        self.0.slots.close();
        let idle = std::mem::take(&mut *self.idle());
        for idle in idle {
            let closing = timeout(FLUSH_TIMEOUT, idle.session.conn.close()).await;
            if let Ok(Err(error)) = closing {
                tracing::debug!(%error, "closing a connection to Postgres failed");
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<IdleSession>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PooledSession {
    /// Returns the connection to the pool. No reply may be outstanding, and no transaction open.
    pub(crate) fn give_back(mut self) {
        let Some(session) = self.session.take() else { return };
        if !self.pool.0.slots.is_closed() {
            self.pool.idle().push(IdleSession { session, born: self.born, since: Instant::now() });
        }
        // After the push: the next owner of the permit finds the connection.
        drop(self.slot.take());
        self.pool.0.returned.notify_one();
    }

    /// Returns the connection, in a task, once the reply to its last command has arrived.
    pub(crate) fn give_back_when_done(mut self) {
        tokio::spawn(async move {
            if let Ok(Ok(())) = timeout(FLUSH_TIMEOUT, self.ping()).await {
                self.give_back();
            }
        });
    }

    /// Abandons a connection whose reply is outstanding. It is closed, unless its server process waits for a synchronous standby:
    /// then it keeps its place in the pool until that wait ends; otherwise each retry would leave another waiting process.
    pub(crate) fn abandon(self, patience: Duration) {
        self.pool.close_idle();
        let Some(pid) = self.session.as_ref().map(|session| session.pid) else { return };
        let opener = self.pool.0.opener.clone();
        tokio::spawn(abandoned::hold_until_answered(self, pid, opener, patience));
    }
}

impl Deref for PooledSession {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.session.as_ref().expect("the session is present until it is returned").conn
    }
}

impl DerefMut for PooledSession {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.session.as_mut().expect("the session is present until it is returned").conn
    }
}
