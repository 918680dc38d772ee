//! One SQL statement per message, in the completion's own transaction.

#[cfg(feature = "postgres")]
mod failure;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(feature = "postgres")]
pub use postgres::PgSqlHandler;
#[cfg(feature = "sqlite")]
pub use sqlite::SqlHandler;
