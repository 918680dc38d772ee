//! Stores that commit the effect and its completion together: [`TransactionalStore`].

use std::error::Error as StdError;

use async_trait::async_trait;

use super::{CompleteRequest, Store};
use crate::error::{Error, ErrorKind};
use crate::key::Scope;

/// A [`Store`] in a database that the handler writes to as well: the inbox. The completion is the last statement of
/// the effect's own transaction, so both are committed or neither.
///
/// The claim commits before, in its batch, so that no transaction is open while a message waits. A transaction that is
/// dropped, or whose connection dies, is rolled back.
///
/// A store may let several effects share a transaction, one after the other, and so one wait for the disk:
/// `begin_shared`, then after each effect `keep` or `undo`, and `commit_shared` with the completions of those that are
/// kept. The methods for that have a default, of a store that [does not](Self::shares_transactions).
#[async_trait]
pub trait TransactionalStore: Store {
    /// Owns an open transaction.
    type Conn: Send + 'static;

    /// The handler's view of it, which cannot commit.
    type Tx<'c>: Send + 'c;

    /// How many transactions may be open at once, where that is limited (by connections, by a single writer). A pipeline opens
    /// no more: its runs wait for their turn, which is no trouble of the store.
    fn max_transactions(&self) -> Option<usize> {
        None
    }

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
    /// [`Error`]: after a retryable one the outcome is unknown, and the next claim of the key finds it; unless it is a
    /// [`Conflict`](crate::ErrorKind::Conflict), after which everything is certainly rolled back and may be repeated at
    /// once.
    async fn commit(
        &self,
        conn: Self::Conn,
        scope: &Scope,
        request: &CompleteRequest,
    ) -> Result<Commit, Error>;

    /// Rolls the transaction back.
    async fn rollback(&self, conn: Self::Conn);

    /// What an error that a handler has returned from inside its transaction shows about the database, if it is one of
    /// the database's client: [`Conflict`](ErrorKind::Conflict) if the transaction met another one,
    /// [`Unavailable`](ErrorKind::Unavailable) if the database takes no statement at all for now. Neither uses an
    /// attempt. It is asked about each error of the chain that came through a bare `?`. The default: `None`.
    fn handler_error(&self, _error: &(dyn StdError + 'static)) -> Option<ErrorKind> {
        None
    }

    /// Whether several effects may share a transaction. The methods below are called only if so.
    fn shares_transactions(&self) -> bool {
        false
    }

    /// Opens a transaction for several effects, ready for the first of them.
    ///
    /// # Errors
    /// [`Error`] if the database cannot; nothing has happened then.
    ///
    /// # Cancel safety
    /// A dropped call leaves no open transaction behind.
    async fn begin_shared(&self) -> Result<Self::Conn, Error> {
        Err(unsupported())
    }

    /// Keeps the effect that was just written, regardless of those after it, and makes ready for the next one. Not
    /// needed after the last: the commit keeps it.
    ///
    /// # Errors
    /// [`Error`]: after one that is not retryable the effect cannot be kept, for it left the transaction in a state that
    /// cannot be committed; it is to be undone. After a retryable one the transaction is lost, with all effects.
    ///
    /// # Cancel safety
    /// After a dropped call the transaction is to be dropped too.
    async fn keep(&self, _conn: &mut Self::Conn) -> Result<(), Error> {
        Err(unsupported())
    }

    /// Undoes what was written since the last effect was kept or undone, and makes ready for the next one. Also after a
    /// handler that was dropped in the middle of a statement.
    ///
    /// # Errors
    /// [`Error`]: the transaction is lost, with all effects.
    ///
    /// # Cancel safety
    /// As for [`keep`](Self::keep).
    async fn undo(&self, _conn: &mut Self::Conn) -> Result<(), Error> {
        Err(unsupported())
    }

    /// Writes the completions of the effects that are kept, each fenced as in [`commit`](Self::commit), and commits: all of
    /// them, or nothing. The keys are distinct.
    ///
    /// # Errors
    /// [`Error`]: after a retryable one the outcome is unknown, for all alike; after any other nothing was committed.
    async fn commit_shared(
        &self,
        _conn: Self::Conn,
        _scope: &Scope,
        _requests: &[CompleteRequest],
    ) -> Result<SharedCommit, Error> {
        Err(unsupported())
    }
}

fn unsupported() -> Error {
    let context = "the store does not let effects share a transaction; run each in its own";
    Error::new(ErrorKind::Unsupported, "share a transaction", context)
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// Effect and completion are durable.
    Committed,
    /// The claim was no longer held: nothing was committed.
    Fenced,
}

/// How a transaction that several effects shared has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedCommit {
    /// All effects and completions are durable.
    Committed,
    /// Nothing was committed: a claim was no longer held, or the database refused them together (a conflict, a deferred
    /// constraint). Each alone may do.
    RolledBack,
}
