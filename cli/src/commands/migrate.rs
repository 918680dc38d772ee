//! `onceward migrate`: creates or upgrades the schema of the store.

use std::path::Path;

use crate::config::Lookup;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::registry;

/// Applies the missing migrations and prints their number. It may be repeated.
pub(super) async fn migrate(file: &Path, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let config = super::failure::load(file, env)?;
    let store = registry::describe_store(&config);
    match registry::migrate(&config).await.map_err(|error| super::failure::failure(&error))? {
        None => out.line(format_args!("{store}: this store has no schema; nothing to do"))?,
        Some(0) => out.line(format_args!("{store}: the schema is up to date"))?,
        Some(1) => out.line(format_args!("{store}: 1 step applied; the schema is up to date"))?,
        Some(steps) => out.line(format_args!("{store}: {steps} steps applied; the schema is up to date"))?,
    }
    Ok(Exit::Done)
}
