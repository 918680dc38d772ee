//! The SQLite store of [`onceward`]: one file, on one host, with the same semantics as every other store.
//!
//! [`SqliteStore`] is the embedded default: nothing to install, and every completion is on disk before it is acked. As
//! a [`TransactionalStore`](onceward::TransactionalStore) it makes handlers that write to the same file
//! *effectively-once*: see [`SqliteTx`].
//!
//! ```
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("onceward.db");
//! use onceward::{Key, Scope, StoreAdmin};
//! use onceward_sqlite::SqliteStore;
//!
//! let store = SqliteStore::open_in(path).await?;
//! let billing = Scope::parse("billing")?;
//! let key = Key::of(&billing, "order 4711")?;
//! assert!(store.inspect(&billing, &key).await?.is_none());
//! # Ok(()) }
//! ```
//!
//! What it does not do: run on a network file system, or serve several hosts. Several processes of one host may share
//! a file; they take turns at writing.

mod check;
mod checkpoint;
mod clock;
mod config;
mod error;
mod inspect;
mod migrate;
mod outbox;
mod purge;
mod row;
mod sql_handler;
mod store;
mod transaction;
mod writer;

#[cfg(feature = "plugin")]
pub mod plugin;

pub use clock::Clock;
pub use config::SqliteConfig;
pub use outbox::{LeasedRows, SqliteOutbox};
pub use sql_handler::SqliteSqlHandler;
pub use store::SqliteStore;
pub use transaction::{SqliteConn, SqliteTx};
