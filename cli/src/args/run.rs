//! Arguments of `onceward run`.

use clap::Args;

use super::file::FileArgs;
use crate::config::HumanDuration;

/// `onceward run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration file.
    #[command(flatten)]
    pub config: FileArgs,
    /// Stop when the source is idle; refused for a source that cannot report it
    #[arg(long)]
    pub until_empty: bool,
    /// The time limit for source, store and handler to become ready; then the run fails. Default: none, or 1m for a run
    /// that ends by itself (a file, or --until-empty)
    #[arg(long, value_name = "DURATION")]
    pub startup_timeout: Option<HumanDuration>,
}
