//! The configuration file that a command works with: [`FileArgs`].

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// A configuration file.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The configuration file
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}
