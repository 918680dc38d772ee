//! Arguments of `onceward top`.

use std::net::SocketAddr;

use clap::Args;

use super::file::FileArgs;

/// `onceward top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// The configuration file.
    #[command(flatten)]
    pub config: FileArgs,
    /// Print the figures once, and end
    #[arg(long)]
    pub once: bool,
    /// The address of the process, if it is not `telemetry.listen`: another port, or that of a container
    #[arg(long, value_name = "IP:PORT")]
    pub address: Option<SocketAddr>,
}
