//! A pool of connections whose opening has a time budget of its own: [`Pool`].
//!
//! A connection takes several replies of the server to open. Callers wait for one no longer than they are willing to, but
//! an opening that has begun goes on without them, and the next caller gets its result: so a server that answers slowly,
//! for instance because it is overloaded, is not locked out.

mod abandoned;
mod opener;

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout};

pub(crate) use opener::{PasswordSource, Session, SessionOpener};

/// How many connections are opened at the same time at most.
const OPENING: usize = 2;
/// An idle connection is closed after this time.
const LONGEST_IDLE: Duration = Duration::from_secs(600);
/// A connection is replaced at this age.
const LONGEST_LIFE: Duration = Duration::from_secs(1_800);
/// How long a connection that is returned may take to finish what was sent on it.
const FLUSH: Duration = Duration::from_secs(10);

/// A bounded number of connections. Clones share them.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    opener: SessionOpener,
    limit: usize,
    /// How long a caller waits for a connection.
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

/// A connection of a [`Pool`]. Dropped, it is closed, unless [`give_back`](Self::give_back) returned it before.
pub(crate) struct PooledSession {
    session: Option<Session>,
    born: Instant,
    slot: Option<OwnedSemaphorePermit>,
    pool: Pool,
}

impl Pool {
    /// No connection is opened yet.
    pub(crate) fn new(opener: SessionOpener, limit: u32, wait: Duration) -> Self {
        let limit = limit as usize;
        Self(Arc::new(Inner {
            opener,
            limit,
            wait,
            slots: Arc::new(Semaphore::new(limit)),
            opening: Semaphore::new(OPENING),
            idle: Mutex::default(),
            returned: Notify::new(),
            opened: AtomicU64::new(0),
        }))
    }

    /// A connection: an idle one, or a new one.
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
        let (tell, told) = oneshot::channel();
        let pool = self.clone();
        tokio::spawn(async move {
            let opened = pool.open(slot).await;
            if let Err(Ok(pooled)) = tell.send(opened) {
                // Nobody waits any more: the next caller gets it.
                pooled.give_back();
            }
        });
        told.await.unwrap_or(Err(sqlx::Error::PoolClosed))
    }

    /// Opens a connection, or takes one that became idle before its turn came.
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
        idle.retain(|idle| idle.since.elapsed() < LONGEST_IDLE && idle.born.elapsed() < LONGEST_LIFE);
        let Some(IdleSession { session, born, .. }) = idle.pop() else { return Err(slot) };
        Ok(PooledSession { session: Some(session), born, slot: Some(slot), pool: self.clone() })
    }

    /// Closes all idle connections: one of the same age has failed, and these have probably failed as well.
    pub(crate) fn distrust_idle(&self) {
        self.idle().clear();
    }

    /// How many connections were opened so far.
    pub(crate) fn opened(&self) -> u64 {
        self.0.opened.load(Ordering::Relaxed)
    }

    /// How many connections there may be at the same time.
    pub(crate) fn limit(&self) -> usize {
        self.0.limit
    }

    /// True once a connection showed that the database's encoding cannot hold every character.
    pub(crate) fn is_narrow(&self) -> bool {
        self.0.opener.is_narrow()
    }

    /// Closes idle connections now, and others when they are returned. Waits until the server has been told.
    pub(crate) async fn close(&self) {
        self.0.slots.close();
        let idle = std::mem::take(&mut *self.idle());
        for idle in idle {
            let closing = timeout(FLUSH, idle.session.conn.close()).await;
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
    /// Returns the connection to the pool. Nothing is under way on it, and no transaction is open.
    pub(crate) fn give_back(mut self) {
        let Some(session) = self.session.take() else { return };
        if !self.pool.0.slots.is_closed() {
            self.pool.idle().push(IdleSession { session, born: self.born, since: Instant::now() });
        }
        // Only now: whoever gets the permit finds the connection.
        drop(self.slot.take());
        self.pool.0.returned.notify_one();
    }

    /// Returns the connection once what was sent on it last has been answered, in a task.
    pub(crate) fn give_back_when_done(mut self) {
        tokio::spawn(async move {
            if let Ok(Ok(())) = timeout(FLUSH, self.ping()).await {
                self.give_back();
            }
        });
    }

    /// Gives up a connection that owes an answer. It is closed, but for one that waits for a synchronous standby: that keeps
    /// its place in the pool until its wait has ended, or each new attempt would leave one more waiting process in the server.
    pub(crate) fn abandon(self, patience: Duration) {
        self.pool.distrust_idle();
        let Some(pid) = self.session.as_ref().map(|session| session.pid) else { return };
        let opener = self.pool.0.opener.clone();
        tokio::spawn(abandoned::hold_until_answered(self, pid, opener, patience));
    }
}

impl Deref for PooledSession {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.session.as_ref().expect("a connection is there until it is returned").conn
    }
}

impl DerefMut for PooledSession {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.session.as_mut().expect("a connection is there until it is returned").conn
    }
}
