//! `keys purge`: removes expired keys, and old entries of the audit trail.

use onceward::ErrorKind;

use super::context::KeysContext;
use crate::args::ReportArgs;
use crate::commands::audit::remove_old;
use crate::commands::failure;
use crate::exit::{Exit, Failure};
use crate::output::{Output, complain};

/// Removes the expired records of all scopes of the store and the old audit entries of this one, and prints their numbers. Without the
/// right to remove audit entries those stay, with a warning.
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
    let retention = context.config.limits().audit_retention.get();
    let entries = match &context.store.audit {
        Some(trail) => remove_old(trail.as_ref(), &context.scope, retention).await,
        None => Ok(0),
    };
    let (entries, failed) = match entries {
        Ok(entries) => (entries, None),
        Err(error) => (0, Some(error)),
    };
    if args.json {
        out.json(&serde_json::json!({
            "removed": removed,
            "expires_by_itself": expires_by_itself,
            "audit_entries_removed": entries,
        }))?;
    } else if expires_by_itself {
        out.line("nothing to remove: the store expires keys itself")?;
    } else {
        out.line(format_args!("{removed} expired keys removed"))?;
    }
    if entries > 0 && !args.json {
        out.line(format_args!("{entries} old entries of the audit trail removed"))?;
    }
    match failed {
        None => Ok(Exit::Done),
        Some(error) if error.kind() == ErrorKind::Denied => {
            complain(format_args!("warning: entries of the audit trail stay: {}", failure::sentence(&error)));
            Ok(Exit::Done)
        }
        Some(error) => Err(failure::failure(&error)),
    }
}
