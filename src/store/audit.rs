//! The record of what operators changed: [`AuditLog`].

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Error;
use crate::key::Scope;

/// What an operator did to one thing, such as a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// The thing, in at most 512 bytes: the position of a letter, or its id.
    pub subject: String,
    /// The subject is done with: [`AuditLog::settled`] answers true for it from then on.
    pub settles: bool,
    /// What was done, by whom and why, as at most 8 KiB of JSON without line ends.
    pub text: String,
}

/// An entry as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Grows with each entry of the scope; numbers may be left out.
    pub number: u64,
    /// [`AuditEntry::text`].
    pub text: String,
}

/// A record of what operators changed, by scope: entries are appended, and removed only when they are old.
///
/// It also keeps which letters are done with, for places from which nothing can be deleted: a Kafka topic, a file.
///
/// ```
/// use onceward::store::{AuditEntry, AuditLog};
/// use onceward::{Error, Scope};
///
/// async fn note(log: &dyn AuditLog, scope: &Scope, letter: &str) -> Result<bool, Error> {
///     let text = r#"{"action":"purged","user":"ops"}"#.to_owned();
///     log.append(scope, &[AuditEntry { subject: letter.to_owned(), settles: true, text }]).await?;
///     Ok(log.settled(scope, &[letter.to_owned()]).await?[0])
/// }
/// ```
#[async_trait]
pub trait AuditLog: Send + Sync + 'static {
    /// Appends entries, in order. They are durable on return, as far as the store is.
    ///
    /// # Errors
    /// [`Error`] if the store cannot answer: any of the entries may have been appended, and appending them again gives copies.
    ///
    /// # Cancel safety
    /// A dropped call has appended any of the entries.
    async fn append(&self, scope: &Scope, entries: &[AuditEntry]) -> Result<(), Error>;

    /// Whether each of the subjects is done with, in order.
    ///
    /// # Errors
    /// [`Error`] if the store cannot answer.
    async fn settled(&self, scope: &Scope, subjects: &[String]) -> Result<Vec<bool>, Error>;

    /// At most `limit` entries, the newest first; only those with a smaller number than `before`, if given.
    ///
    /// # Errors
    /// [`Error`] if the store cannot answer.
    async fn read(&self, scope: &Scope, before: Option<u64>, limit: u32) -> Result<Vec<AuditRecord>, Error>;

    /// Removes at most `limit` entries of the scope that were appended at least `age` ago in the store's time, the oldest first, and
    /// answers how many. What they have settled stays settled, since its letter may still be there; numbers stay as they are.
    ///
    /// # Errors
    /// [`Error`] if the store cannot answer: any of the entries may have been removed.
    ///
    /// # Cancel safety
    /// A dropped call has removed any of the entries.
    async fn remove_older(&self, scope: &Scope, age: Duration, limit: u32) -> Result<u64, Error>;
}
