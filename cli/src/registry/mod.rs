//! Opens the parts of a pipeline that a configuration names: plugins by their traits, handlers by their types.
//!
//! ```text
//! [source.*], [store.*], publish targets ─▶ plugin ─┐
//! [handler.*]                            ─▶ handler.rs ─┼─▶ build.rs ─▶ a pipeline of any type
//! the rest                               ─▶ config/core.rs ┘
//! ```

mod build;
mod handler;
mod outbox;
mod own_headers;

use std::sync::Arc;

use onceward::adapter::{CheckpointStore, Consumer, Replies};
use onceward::store::Advice;
use onceward::{DeadLetters, Error, ErrorKind, MemoryStore, OwnHeaders, Scope};
use onceward_plugin::source::SourceParts;

use crate::config::{Config, Contexts, OnCompleted};

pub(crate) use build::{BuildParts, build};
pub(crate) use handler::{AnyHandler, check_statement, open_handler};
pub(crate) use onceward_plugin::{
    Backlog, DeadLetterStatus, OpenStore, Purpose, ReadyRelay, TemporarySource,
};
pub(crate) use outbox::{check_outbox_target, describe_outbox_target, open_relay, outbox_status};
use own_headers::own_headers;

/// Opens the source; `checkpoints` keeps how far it was read, where no broker does.
///
/// # Errors
/// [`Error`] if it cannot be used as it is configured, or `checkpoints` does not answer.
pub(crate) async fn open_source(
    config: &Config,
    scope: &Scope,
    checkpoints: Arc<dyn CheckpointStore>,
) -> Result<Box<dyn Consumer>, Error> {
    let parts = SourceParts { scope: scope.clone(), checkpoints, own_headers: own_headers(config)? };
    config.source.plugin().open(&Contexts::of(config).source(), parts).await
}

/// Creates an empty source like that of `config` beside it, for measurements.
///
/// # Errors
/// [`Error`] if the source has no such capability, is not allowed to, or cannot be reached.
pub(crate) async fn create_temporary_source(config: &Config, suffix: &str) -> Result<TemporarySource, Error> {
    config.source.plugin().temporary(&Contexts::of(config).source(), suffix).await
}

/// Opens a temporary source with the settings of `config`. Nothing outlives this process of how far it was read.
///
/// # Errors
/// [`Error`] if it cannot be used.
pub(crate) async fn open_temporary_source(
    config: &Config,
    scope: &Scope,
    temporary: &TemporarySource,
) -> Result<Box<dyn Consumer>, Error> {
    let checkpoints = Arc::new(MemoryStore::new());
    let parts = SourceParts { scope: scope.clone(), checkpoints, own_headers: own_headers(config)? };
    temporary.table.open(&Contexts::of(config).source(), parts).await
}

/// Opens the destination of dead letters, if one is configured.
///
/// # Errors
/// [`Error`] if it cannot be reached or used.
pub(crate) async fn open_dead_letters(config: &Config) -> Result<Option<DeadLetters>, Error> {
    let Some(dead_letter) = &config.dead_letter else { return Ok(None) };
    let (contexts, own) = (Contexts::of(config), own_headers(config)?);
    let source = config.source.plugin();
    source.dead_letters(&contexts.source(), dead_letter.to.expose(), own).await.map(Some)
}

/// Opens what sends results to where messages ask for them, if the policy wants it.
///
/// # Errors
/// [`Error`] if it cannot be reached.
pub(crate) async fn open_replies(config: &Config) -> Result<Option<Arc<dyn Replies>>, Error> {
    if config.policy.on_completed == OnCompleted::Ack {
        return Ok(None);
    }
    config.source.plugin().replies(&Contexts::of(config).source()).await.map(Some)
}

/// Opens the store.
///
/// # Errors
/// [`Error`] if it cannot be reached or must not be used as it is.
pub(crate) async fn open_store(config: &Config, purpose: Purpose) -> Result<OpenStore, Error> {
    config.store.plugin().open(&Contexts::of(config).store(), purpose).await
}

/// The findings of the store about itself, apart from those of [`Config::advice`].
///
/// # Errors
/// [`Error`] if it cannot be reached or must not be used as it is.
pub(crate) async fn check_store(config: &Config, store: &OpenStore) -> Result<Vec<Advice>, Error> {
    let advice = store.store.check().await?;
    Ok(if config.store.plugin().facts().is_in_memory { Vec::new() } else { advice })
}

/// Creates the store's schema or brings it up to date, and returns how many steps that took; `None` where there is no schema.
///
/// # Errors
/// As for [`open_store`].
pub(crate) async fn migrate(config: &Config) -> Result<Option<u32>, Error> {
    config.store.plugin().migrate(&Contexts::of(config).store()).await
}

/// The backlog of the source; `None` where it is unknown.
///
/// # Errors
/// [`Error`] if it cannot be read.
pub(crate) async fn backlog(
    config: &Config,
    scope: &Scope,
    checkpoints: &dyn CheckpointStore,
) -> Result<Option<Backlog>, Error> {
    config.source.plugin().backlog(&Contexts::of(config).source(), scope, checkpoints).await
}

/// The dead letters; `None` without a destination for them.
///
/// # Errors
/// [`Error`] if the destination cannot be read.
pub(crate) async fn dead_letter_status(config: &Config) -> Result<Option<DeadLetterStatus>, Error> {
    let Some(dead_letter) = &config.dead_letter else { return Ok(None) };
    let contexts = Contexts::of(config);
    config.source.plugin().dead_letter_status(&contexts.source(), dead_letter.to.expose()).await.map(Some)
}

/// The two ends of a redrive, and how letters are authenticated on the way.
pub(crate) struct Letters {
    pub(crate) ends: onceward_plugin::Letters,
    /// The secrets that authenticate letters, and whose letters are trusted.
    pub(crate) own: OwnHeaders,
    /// The source recognises a letter by its headers alone, and so has to be sent them.
    pub(crate) needs_headers: bool,
}

/// Opens both ends. `queue` replaces `dead_letter.to`, where that is not a queue.
///
/// # Errors
/// [`Error`] if there is no such destination, or one of the two cannot be used.
pub(crate) async fn open_letters(
    config: &Config,
    scope: &Scope,
    checkpoints: Arc<dyn CheckpointStore>,
    queue: Option<&str>,
) -> Result<Letters, Error> {
    let given = queue.or_else(|| Some(config.dead_letter.as_ref()?.to.expose()));
    let from = given.ok_or_else(no_dead_letters)?;
    let own = own_headers(config)?;
    let parts = SourceParts { scope: scope.clone(), checkpoints, own_headers: own.clone() };
    let source = config.source.plugin();
    let ends = source.letters(&Contexts::of(config).source(), from, parts).await?;
    Ok(Letters { ends, own, needs_headers: source.facts().needs_letter_headers })
}

/// Opens the letters of the configuration to read them, without the end that they are redriven to.
///
/// # Errors
/// [`Error`] if there is no destination, or it cannot be used.
pub(crate) async fn open_letters_to_read(
    config: &Config,
    scope: &Scope,
    checkpoints: Arc<dyn CheckpointStore>,
) -> Result<Box<dyn Consumer>, Error> {
    let from = config.dead_letter.as_ref().map(|dead_letter| dead_letter.to.expose());
    let from = from.ok_or_else(no_dead_letters)?;
    let parts = SourceParts { scope: scope.clone(), checkpoints, own_headers: own_headers(config)? };
    config.source.plugin().letters_to_read(&Contexts::of(config).source(), from, parts).await
}

fn no_dead_letters() -> Error {
    let what =
        "there is no [dead_letter] in the configuration; add it, with the place that letters were sent to";
    Error::new(ErrorKind::Config, "take dead letters back", what)
}

/// A short description of the source without secrets, for logs.
pub(crate) fn describe_source(config: &Config) -> String {
    config.source.plugin().describe(&Contexts::of(config).source())
}

/// As [`describe_source`], for the store.
pub(crate) fn describe_store(config: &Config) -> String {
    config.store.plugin().describe(&Contexts::of(config).store())
}
