//! The open parts of a command on letters: [`LettersContext`].

use std::sync::Arc;

use onceward::store::AuditLog;
use onceward::{OwnHeaders, Scope};
use onceward_plugin::LetterTarget;

use super::reader::OpenLetters;
use crate::args::FileArgs;
use crate::commands::failure;
use crate::config::{self, Config, Lookup};
use crate::exit::{Exit, Failure};
use crate::logging;
use crate::registry::{self, OpenStore, Purpose};

/// The change that is confirmed.
pub(super) const CHANGE: &str = "change dead letters";

/// A configuration, its store and its dead letters.
pub(super) struct LettersContext {
    pub(super) config: Config,
    pub(super) scope: Scope,
    pub(super) store: OpenStore,
    pub(super) audit: Arc<dyn AuditLog>,
    pub(super) reader: OpenLetters,
    pub(super) to: LetterTarget,
    pub(super) own: OwnHeaders,
    /// The source recognises a letter by its headers alone.
    pub(super) needs_headers: bool,
}

/// Loads the configuration and starts logging.
pub(super) fn load(args: &FileArgs, env: Lookup<'_>) -> Result<(Config, Scope), Failure> {
    let config = failure::load(&args.file, env)?;
    logging::start(config.telemetry.log, env)?;
    let scope = config::scope(&config).map_err(|error| failure::failure(&error))?;
    Ok((config, scope))
}

/// Opens the store, and its audit trail.
pub(super) async fn open_store(config: &Config) -> Result<(OpenStore, Arc<dyn AuditLog>), Failure> {
    let opened = registry::open_store(config, Purpose::Operate).await;
    let store = opened.map_err(|error| failure::failure(&error))?;
    let audit = store.audit.clone().ok_or_else(|| {
        let sentence = format!(
            "[store.{}] keeps no audit trail, without which letters are not touched; use another store",
            config.store.name()
        );
        Failure::new(Exit::Config, sentence)
    })?;
    Ok((store, audit))
}

impl LettersContext {
    /// Opens the store and both ends; `from` replaces `dead_letter.to`.
    pub(super) async fn open(from: Option<&str>, config: Config, scope: Scope) -> Result<Self, Failure> {
        let (store, audit) = open_store(&config).await?;
        let opened = registry::open_letters(&config, &scope, store.checkpoints.clone(), from).await;
        let registry::Letters { ends, own, needs_headers } =
            opened.map_err(|error| failure::failure(&error))?;
        let (from, to) = ends.split();
        let reader = OpenLetters::new(from, Arc::clone(&audit), scope.clone());
        Ok(Self { config, scope, store, audit, reader, to, own, needs_headers })
    }

    /// Gives back what was read, whatever `outcome` is.
    pub(super) async fn close<T>(self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        let closed = self.reader.close().await;
        self.store.close().await;
        let outcome = outcome?;
        closed.map_err(|error| failure::failure(&error))?;
        Ok(outcome)
    }
}
