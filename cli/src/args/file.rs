//! The configuration file that a command works with: [`FileArgs`], [`ReportArgs`].

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// A configuration file.
#[derive(Debug, Clone, Args)]
pub struct FileArgs {
    /// The configuration file
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// A configuration file, and how to report on it.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The configuration file.
    #[command(flatten)]
    pub config: FileArgs,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}
