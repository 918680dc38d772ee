//! `onceward schema`: prints the JSON Schema of the configuration file, for editors and checks.

use crate::config;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Prints the schema, indented.
pub(super) fn schema(out: &mut Output) -> Result<Exit, Failure> {
    out.line(format_args!("{:#}", config::schema().as_value()))?;
    Ok(Exit::Done)
}
