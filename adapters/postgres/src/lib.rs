//! The Postgres store of [`onceward`]: claims by the batch, and effects committed together with their completion.
//!
//! [`PgStore`] keeps keys in a schema of their own, `onceward` unless told. As a
//! [`TransactionalStore`](onceward::TransactionalStore) it makes handlers that write to the same database
//! *effectively-once*: see [`PgTx`]. What such a handler has to tell others goes into the same transaction, and out by a
//! relay: see [`PgOutbox`].
//!
//! ```no_run
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use onceward::{Key, Scope, Store};
//! use onceward_postgres::{PgConfig, PgStore};
//!
//! let store = PgStore::connect(PgConfig::from_url("postgres://worker@127.0.0.1/shop")?).await?;
//! let billing = Scope::parse("billing")?;
//! let key = Key::of(&billing, "order 4711")?;
//! assert!(store.inspect(&billing, &key).await?.is_none());
//! # Ok(()) }
//! ```
//!
//! # Rights
//! Migrations need the right to create the schema. The role of a worker needs no more than what [`PgStore::grants`]
//! lists: no DDL, no ownership. Tests run under such a role, and beside a hostile one: a schema in which others have objects is
//! refused, and nothing that others create in a schema of the `search_path` is called.
//!
//! # What it does not do
//! Claims and completions are on disk of the *primary* when a call answers; a failover to an asynchronous standby can
//! lose the last ones.

mod check;
mod checkpoint;
mod claim;
mod config;
mod connection;
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

pub use config::PgConfig;
pub use connection::PgConn;
pub use error::handler_error;
pub use outbox::PgOutbox;
pub use sql_handler::PgSqlHandler;
pub use store::PgStore;
pub use transaction::{EffectOutcome, PgTx};
