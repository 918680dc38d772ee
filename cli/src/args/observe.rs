//! Arguments of `onceward observe`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::run::RunArgs;
use crate::config::HumanDuration;

/// `onceward observe`.
#[derive(Debug, Args)]
pub struct ObserveArgs {
    /// The run.
    #[command(flatten)]
    pub run: RunArgs,
    /// Stop after this time. Default: none, until the source ends or a signal
    #[arg(long = "for", value_name = "DURATION")]
    pub limit: Option<HumanDuration>,
    /// Print the report as one line of JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Write the report with plots to this HTML file as well; an existing file is replaced
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub html: Option<PathBuf>,
}
