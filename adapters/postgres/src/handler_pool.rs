//! Connections for the transactions of handlers: [`HandlerPool`].

use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool};

use crate::pool::{Pool, PooledSession};

/// The pool for the transactions of handlers.
pub(crate) enum HandlerPool {
    /// The store's own.
    Own(Pool),
    /// The application's.
    Application(PgPool),
}

/// A connection of either pool.
pub(crate) enum HandlerConnection {
    Own(PooledSession),
    Application(PoolConnection<Postgres>),
}

impl HandlerPool {
    /// Acquires a connection.
    pub(crate) async fn acquire(&self) -> Result<HandlerConnection, sqlx::Error> {
        match self {
            Self::Own(pool) => pool.acquire().await.map(HandlerConnection::Own),
            Self::Application(pool) => pool.acquire().await.map(HandlerConnection::Application),
        }
    }

    /// The maximum number of concurrent connections.
    pub(crate) fn limit(&self) -> usize {
        match self {
            Self::Own(pool) => pool.limit(),
            Self::Application(pool) => pool.options().get_max_connections() as usize,
        }
    }
}

impl HandlerConnection {
    /// The connection.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        match self {
            Self::Own(conn) => conn,
            Self::Application(conn) => conn,
        }
    }

    /// Returns it to its pool. The reply to the last command may still be outstanding.
    pub(crate) fn give_back(self) {
        match self {
            Self::Own(conn) => conn.give_back_when_done(),
            // sqlx's pool waits for the reply.
            Self::Application(conn) => drop(conn),
        }
    }

    /// Closes it, which rolls back an open transaction.
    pub(crate) fn close(self) {
        match self {
            Self::Own(conn) => drop(conn),
            Self::Application(mut conn) => conn.close_on_drop(),
        }
    }

    /// Abandons it while a commit is in flight.
    pub(crate) fn abandon(self, patience: std::time::Duration) {
        match self {
            Self::Own(conn) => conn.abandon(patience),
            theirs => theirs.close(),
        }
    }
}
