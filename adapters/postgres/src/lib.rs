//! The Postgres store of [`onceward`]: claims by the batch, and effects committed together with their completion.
//!
//! [`PgStore`] keeps keys in a schema of its own, by default `onceward`. As a
//! [`TransactionalStore`](onceward::TransactionalStore) it makes handlers that write to the same database
//! *effectively-once*: see [`PgTx`]. Messages that such a handler publishes are written in the same transaction, and sent by
//! a relay: see [`PgOutbox`].
//!
//! ```no_run
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use onceward::adapter::StoreAdmin;
//! use onceward::{Key, Scope};
//! use onceward_postgres::{PgConfig, PgStore};
//!
//! let store = PgStore::open(PgConfig::new("postgres://worker@127.0.0.1/shop")).await?;
//! let billing = Scope::parse("billing")?;
//! let key = Key::of(&billing, "order 4711")?;
//! assert!(store.inspect(&billing, &key).await?.is_none());
//! # Ok(()) }
//! ```
//!
//! # Rights
//! Migrations need the right to create the schema. The role of a worker needs only the rights that [`PgStore::grants`]
//! lists: no DDL, no ownership. The tests run under such a role, and beside a hostile one: a schema that contains objects of
//! other roles is refused, and no function or operator that another role creates in a schema of the `search_path` is called.
//!
//! # Limits
//! When a call returns, claims and completions are on disk of the *primary*; a failover to an asynchronous standby can lose
//! the last ones. The README lists what is promised, what is not, and what to set on the server.

mod audit;
mod check;
mod checkpoint;
mod claim;
mod commit_together;
mod config;
mod connection;
mod connector;
mod endpoint;
mod error;
mod guard;
mod handler_pool;
mod inspect;
mod migrate;
mod operators;
mod outbox;
mod pool;
mod position;
mod purge;
mod row;
mod schema_ownership;
mod session;
mod sql_handler;
mod store;
mod tls;
mod transaction;

#[cfg(feature = "plugin")]
pub mod plugin;

/// The client crate, in the version whose pool `from_client` takes and whose queries run in a handler's transaction.
pub use sqlx;

pub use commit_together::EffectOutcome;
pub use config::{PgConfig, PgOptions};
pub use connection::PgConn;
pub use endpoint::{PasswordProvider, PgEndpoint};
pub use error::handler_error;
pub use outbox::PgOutbox;
pub use sql_handler::PgSqlHandler;
pub use store::PgStore;
pub use transaction::PgTx;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct PostgresReadme;
