//! The context of the commands on keys: [`KeysContext`].

use onceward::Scope;

use crate::args::FileArgs;
use crate::commands::failure;
use crate::config::{self, Config, Lookup};
use crate::exit::Failure;
use crate::logging;
use crate::registry::{self, OpenStore, Purpose};

/// A configuration and its open store.
pub(super) struct KeysContext<'e> {
    pub(super) config: Config,
    pub(super) scope: Scope,
    pub(super) store: OpenStore,
    pub(super) env: Lookup<'e>,
}

impl<'e> KeysContext<'e> {
    pub(super) async fn open(args: &FileArgs, env: Lookup<'e>) -> Result<Self, Failure> {
        let config = failure::load(&args.file, env)?;
        logging::start(config.telemetry.log, env)?;
        let scope = config::scope(&config).map_err(|error| failure::failure(&error))?;
        let opened = registry::open_store(&config, Purpose::Operate).await;
        let store = opened.map_err(|error| failure::failure(&error))?;
        Ok(Self { config, scope, store, env })
    }
}
