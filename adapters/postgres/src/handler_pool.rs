//! Where the transactions of handlers get their connections: [`HandlerPool`].

use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool};

use crate::pool::{Pool, PooledSession};

/// A pool for the transactions of handlers.
pub(crate) enum HandlerPool {
    /// The store's own.
    Own(Pool),
    /// The application's.
    Application(PgPool),
}

/// A connection out of either.
pub(crate) enum HandlerConnection {
    Own(PooledSession),
    Application(PoolConnection<Postgres>),
}

impl HandlerPool {
    /// A connection.
    pub(crate) async fn acquire(&self) -> Result<HandlerConnection, sqlx::Error> {
        match self {
            Self::Own(pool) => pool.acquire().await.map(HandlerConnection::Own),
            Self::Application(pool) => pool.acquire().await.map(HandlerConnection::Application),
        }
    }

    /// How many connections there may be at the same time.
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

    /// Returns it. What was sent on it last need not have been answered yet.
    pub(crate) fn give_back(self) {
        match self {
            Self::Own(conn) => conn.give_back_when_done(),
            // Its pool waits for the answer.
            Self::Application(conn) => drop(conn),
        }
    }

    /// Closes it, which rolls back what is open.
    pub(crate) fn close(self) {
        match self {
            Self::Own(conn) => drop(conn),
            Self::Application(mut conn) => conn.close_on_drop(),
        }
    }

    /// Gives it up while a commit is under way on it.
    pub(crate) fn abandon(self, patience: std::time::Duration) {
        match self {
            Self::Own(conn) => conn.abandon(patience),
            theirs => theirs.close(),
        }
    }
}
