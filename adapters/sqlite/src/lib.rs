//! The SQLite store of [`onceward`]: a file on one host, with the semantics of every other store.
//!
//! [`SqliteStore`] is the embedded default: nothing to install, and every completion is on disk before its message is acked. As a [`TransactionalStore`](onceward::TransactionalStore) it makes handlers that write to the same file
//! *effectively-once*: see [`SqliteTx`].
//!
//! ```
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("onceward.db");
//! use onceward::adapter::StoreAdmin;
//! use onceward::{Key, Scope};
//! use onceward_sqlite::{SqliteConfig, SqliteStore};
//!
//! let store = SqliteStore::open(SqliteConfig::new(path)).await?;
//! let billing = Scope::parse("billing")?;
//! let key = Key::of(&billing, "order 4711")?;
//! assert!(store.inspect(&billing, &key).await?.is_none());
//! # Ok(()) }
//! ```
//!
//! It does not support network file systems or several hosts. Several processes of one host may share a file; their writes are
//! serialized. The README lists what is promised and what is not.

mod audit;
mod check;
mod checkpoint;
mod clock;
mod config;
mod error;
mod inspect;
mod migrate;
mod outbox;
mod purge;
mod reader;
mod row;
mod sql_handler;
mod store;
mod transaction;
mod writer;

#[cfg(feature = "plugin")]
pub mod plugin;

/// The client crate, in the version whose queries run in a handler's transaction.
pub use sqlx;

pub use clock::Clock;
pub use config::SqliteConfig;
pub use outbox::{LeasedRows, SqliteOutbox};
pub use sql_handler::SqliteSqlHandler;
pub use store::SqliteStore;
pub use transaction::{SqliteConn, SqliteTx};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct SqliteReadme;
