//! PostgreSQL in the configuration of the `onceward` program: `[store.postgres]`, and `[handler.sql]` in it.

mod statements;
mod table;

pub use table::{FACTS, PostgresTable as Store};
