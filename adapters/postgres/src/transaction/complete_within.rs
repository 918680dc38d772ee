//! The completion in a transaction of the application's own: [`PgStore::complete_within`].

use onceward::store::Lease;
use onceward::{Error, ErrorKind};
use sqlx::{AssertSqlSafe, PgConnection, query};

use crate::error::store_error;
use crate::store::PgStore;

const WITHIN: &str = "complete a claim within a transaction";

impl PgStore {
    /// Completes a claim as the last statement of a transaction that the caller opened and will commit: effect and
    /// completion become durable together, or not at all. For loops that write through a pool of their own, with
    /// [`Deduplicator`](onceward::Deduplicator).
    ///
    /// ```no_run
    /// # use onceward::{Deduplicator, Key};
    /// # use onceward_postgres::PgStore;
    /// # async fn example(pool: sqlx::PgPool, store: PgStore, once: Deduplicator, key: Key) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    /// let charged = once.once(&key, async |claim| {
    ///     let mut tx = pool.begin().await?;
    ///     sqlx::query("INSERT INTO charges (n) VALUES (1)").execute(&mut *tx).await?;
    ///     store.complete_within(&mut tx, claim.lease()).await?;
    ///     tx.commit().await?;
    ///     Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    /// });
    /// assert!(charged.await.is_ok_and(|once| once.may_ack()));
    /// # Ok(()) }
    /// ```
    ///
    /// `synchronous_commit` is on for the rest of the transaction. The connection's role needs
    /// [`handler_grants`](Self::handler_grants). It keeps the row locked until the transaction ends, so that the claim cannot
    /// be renewed from here on.
    ///
    /// # Errors
    /// [`Error`] if there is no claim or it is no longer held, or the database does not answer: the transaction is to be
    /// rolled back, and Postgres commits nothing of it.
    ///
    /// # Cancel safety
    /// After a dropped call the transaction is to be rolled back.
    pub async fn complete_within(
        &self,
        conn: &mut PgConnection,
        lease: impl Into<Option<Lease>>,
    ) -> Result<(), Error> {
        let Some(lease) = lease.into() else {
            return Err(Error::new(ErrorKind::Internal, WITHIN, "there is no claim; claim the key first"));
        };
        let sql = format!("SELECT {}.complete($1::pg_catalog.text)", self.schema());
        let done = query(AssertSqlSafe(sql)).bind(lease.to_token()).execute(conn).await;
        done.map(drop).map_err(|error| store_error(WITHIN, error))
    }
}
