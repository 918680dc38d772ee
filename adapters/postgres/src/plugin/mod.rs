//! PostgreSQL in the configuration of the `onceward` program: `[store.postgres]`, and `[handler.sql]` in it.

mod findings;
mod statements;
mod table;

use onceward_plugin::LogRule;

pub use findings::FINDINGS;
pub use table::{FACTS, PostgresTable as Store};

/// The log lines of the client library.
pub const LOG_RULES: &[LogRule] = &[LogRule::new("sqlx", "error")];
