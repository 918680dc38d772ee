//! `keys purge`: removes expired keys.

use super::context::KeysContext;
use crate::args::ReportArgs;
use crate::commands::failure;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Removes the expired records of all scopes of the store, and prints their number.
pub(super) async fn purge(
    context: &KeysContext<'_>,
    args: &ReportArgs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let store = &context.store.store;
    let expiring = store.expiring();
    let expires_by_itself = expiring.is_none();
    let removed = match expiring {
        Some(expiring) => {
            onceward::purge_expired(expiring).await.map_err(|error| failure::failure(&error))?
        }
        None => 0,
    };
    if args.json {
        out.json(&serde_json::json!({ "removed": removed, "expires_by_itself": expires_by_itself }))?;
    } else if expires_by_itself {
        out.line("nothing to remove: the store expires keys itself")?;
    } else {
        out.line(format_args!("{removed} expired keys removed"))?;
    }
    Ok(Exit::Done)
}
