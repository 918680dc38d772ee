//! Arguments of `onceward bench`.

use clap::Args;

use super::file::ReportArgs;

/// `onceward bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The configuration and the output format.
    #[command(flatten)]
    pub report: ReportArgs,
    /// How many messages each run consumes, copies included, from 100 to 10000000
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    pub messages: u32,
    /// The size of a payload in bytes, up to 1048576; a JSON object, which may need more than a few dozen
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub size: u32,
    /// How often everything is measured, from 1 to 100
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// How many of 100 messages are copies of an earlier one, up to 90
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=90))]
    pub duplicates: u32,
    /// Do not ask for confirmation; required without a terminal
    #[arg(long)]
    pub yes: bool,
}
