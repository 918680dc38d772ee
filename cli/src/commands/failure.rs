//! Loads configurations and words failures, for all commands.

use std::path::Path;

use onceward::{Error, ErrorKind};

use crate::config::{Config, ConfigError, Lookup, missing_telemetry};
use crate::exit::{Exit, Failure};

pub(super) use onceward_plugin::sentence;

/// Loads a configuration that this build supports.
pub(super) fn load(file: &Path, env: Lookup<'_>) -> Result<Config, Failure> {
    Ok(load_with(file, env)?)
}

/// As [`load`], with the error of the configuration.
pub(super) fn load_with(file: &Path, env: Lookup<'_>) -> Result<Config, ConfigError> {
    let config = Config::load(file, env)?;
    missing_telemetry(&config).map_or(Ok(config), Err)
}

/// The failure of a command because of `error`.
pub(super) fn failure(error: &Error) -> Failure {
    let exit = match error.kind() {
        ErrorKind::Config => Exit::Config,
        _ => Exit::Failed,
    };
    Failure::new(exit, sentence(error))
}
