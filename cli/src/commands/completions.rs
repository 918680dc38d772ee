//! `onceward completions`: prints a completion script for a shell.

use clap_complete::{Shell, generate};

use crate::args::CommandLine;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Prints the script.
pub(super) fn completions(shell: Shell, out: &mut Output) -> Result<Exit, Failure> {
    // Into memory first: `generate` panics where writing fails, as on a closed pipe.
    let mut script = Vec::new();
    generate(shell, &mut CommandLine::clap(), "onceward", &mut script);
    out.write(&script)?;
    Ok(Exit::Done)
}
