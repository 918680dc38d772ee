//! Stores that commit the effect and its completion together: [`TransactionalStore`].

use async_trait::async_trait;

use super::{CompleteRequest, Store};
use crate::error::Error;
use crate::key::Scope;

/// A [`Store`] in a database that the handler writes to as well: the inbox. The completion is the last statement of
/// the effect's own transaction, so both are committed or neither.
///
/// The claim commits before, in its batch, so that no transaction is open while a message waits. A transaction that is
/// dropped, or whose connection dies, is rolled back.
#[async_trait]
pub trait TransactionalStore: Store {
    /// Owns an open transaction.
    type Conn: Send + 'static;

    /// What the handler sees of it; it cannot commit.
    type Tx<'c>: Send + 'c;

    /// Opens a transaction.
    ///
    /// # Errors
    /// [`Error`] if the database cannot; nothing has happened then.
    ///
    /// # Cancel safety
    /// A dropped call leaves no open transaction behind.
    async fn begin(&self) -> Result<Self::Conn, Error>;

    /// Lends the transaction to the handler.
    fn lend<'c>(&self, conn: &'c mut Self::Conn) -> Self::Tx<'c>;

    /// Writes the completion as the last statement, fenced (pending, by this owner, under this fence), and commits.
    /// If the claim is no longer held, everything is rolled back.
    ///
    /// # Errors
    /// [`Error`]: after a retryable one the outcome is unknown, and the next claim of the key tells.
    async fn commit(
        &self,
        conn: Self::Conn,
        scope: &Scope,
        request: &CompleteRequest,
    ) -> Result<Commit, Error>;

    /// Rolls the transaction back.
    async fn rollback(&self, conn: Self::Conn);
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// Effect and completion are durable.
    Committed,
    /// The claim was no longer held: nothing was committed.
    Fenced,
}
