//! `onceward config show`: prints the effective configuration, with defaults and without secrets.

use std::path::Path;

use crate::config::{Config, Lookup, REDACTED};
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Prints TOML that parses to the same configuration, except for its secrets.
pub(super) fn show(file: &Path, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let toml = Config::load(file, env)?.to_toml().map_err(|error| {
        Failure::new(Exit::Failed, format!("the configuration cannot be printed ({}); report this", error))
    })?;
    out.line(format_args!(
        "# The effective configuration of {:?}; secrets are shown as {REDACTED}",
        file.display()
    ))?;
    out.write(toml.as_bytes())?;
    Ok(Exit::Done)
}
