//! An open transaction and its connection: [`PgConn`].

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgTransactionManager};
use sqlx::{Connection as _, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;

use crate::guard::catch_panic;
use crate::handler_pool::HandlerConnection;
use crate::pool::Pool;

/// An open transaction. Dropped, its connection is closed, which rolls it back.
pub struct PgConn {
    /// `None` once it is committed or rolled back.
    conn: Option<HandlerConnection>,
    /// A commit was sent and is not answered; for how long one reply is waited for.
    committing: Option<Duration>,
}

impl PgConn {
    /// Opens a transaction for the store's own work, on one of its own connections.
    pub(crate) async fn begin_plain(pool: &Pool) -> Result<Self, sqlx::Error> {
        let mut open = Self::of(HandlerConnection::Own(pool.acquire().await?));
        let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE".into_sql_str();
        PgTransactionManager::begin(open.connection(), Some(begin)).await?;
        Ok(open)
    }

    pub(crate) fn of(conn: HandlerConnection) -> Self {
        Self { conn: Some(conn), committing: None }
    }

    /// Notes that what is sent next ends in a commit: a connection that is dropped while that is under way may wait for a
    /// standby.
    pub(crate) fn commits(&mut self, patience: Duration) {
        self.committing = Some(patience);
    }

    /// Notes that the commit was answered.
    pub(crate) fn committed(&mut self) {
        self.committing = None;
    }

    /// Commits it. After an error nobody knows whether it is committed; the connection is closed.
    pub(crate) async fn commit_plain(mut self, patience: Duration) -> Result<(), sqlx::Error> {
        self.commits(patience);
        PgTransactionManager::commit(self.connection()).await?;
        self.give_back();
        Ok(())
    }

    /// Returns the connection. What was sent on it last need not have been answered yet.
    pub(crate) fn give_back(&mut self) {
        if let Some(conn) = self.conn.take() {
            conn.give_back();
        }
    }

    /// The connection.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        self.conn.as_mut().expect("a transaction is open until it is committed or rolled back").connection()
    }

    /// Rolls it back, and waits for that.
    pub(crate) async fn end(self) {
        end(self).await;
    }
}

impl std::fmt::Debug for PgConn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PgConn").field("open", &self.conn.is_some()).finish()
    }
}

impl Drop for PgConn {
    fn drop(&mut self) {
        match (self.conn.take(), self.committing) {
            (Some(conn), Some(patience)) => conn.abandon(patience),
            (Some(conn), None) => conn.close(),
            (None, _) => {}
        }
    }
}

/// Rolls back what is open, however deep; if that fails, closes the connection, which does it too.
pub(crate) async fn end(mut open: PgConn) {
    if open.conn.is_none() {
        return;
    }
    let conn = open.connection();
    let rolling_back = async {
        conn.ping().await?;
        while PgTransactionManager::get_transaction_depth(conn) > 0 {
            PgTransactionManager::rollback(conn).await?;
        }
        Ok(())
    };
    if catch_panic(rolling_back).await.is_ok() {
        open.give_back();
    }
}
