//! The outbox of a store, and the relay that publishes its rows.

use std::sync::Arc;

use onceward::outbox::{OutboxStatus, RelayConfig};
use onceward::{Error, ErrorKind, Publisher};
use onceward_plugin::{AnyOutbox, OpenStore, ReadyRelay};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Contexts, stores_with};

/// A relay from the store's outbox to its broker.
///
/// # Errors
/// [`Error`] if the store has no outbox, or the broker cannot be reached.
pub(crate) async fn open_relay(
    config: &Config,
    store: &OpenStore,
    shutdown: CancellationToken,
) -> Result<ReadyRelay, Error> {
    let outbox = outbox_of(config, store)?;
    let settings = RelayConfig { keep: config.outbox.keep.get(), ..RelayConfig::default() };
    outbox.relay(open_publisher(config).await?, settings, shutdown)
}

/// What waits in the store's outbox.
///
/// # Errors
/// [`Error`] if the store has no outbox, or does not answer.
pub(crate) async fn outbox_status(config: &Config, store: &OpenStore) -> Result<OutboxStatus, Error> {
    outbox_of(config, store)?.status().await
}

fn outbox_of<'s>(config: &Config, store: &'s OpenStore) -> Result<&'s dyn AnyOutbox, Error> {
    store.outbox.as_deref().ok_or_else(|| {
        let others = stores_with(|store| store.has_outbox);
        let what = format!("[store.{}] has none; use {others}", config.store.name());
        Error::new(ErrorKind::Config, "open the outbox", what)
    })
}

/// Where the outbox is published to, in a few words without secrets.
pub(crate) fn describe_outbox_target(config: &Config) -> String {
    match config.outbox.targets().first() {
        Some((_, relay)) => relay.describe(),
        None => config.source.plugin().describe_publisher(&Contexts::of(config).source()),
    }
}

/// Checks whether the broker that `[outbox.*]` names answers, and describes it, with its table. `None`: none is named,
/// so the source's own broker is used. The rows name queues and topics, so these are not checked.
///
/// # Errors
/// [`Error`] if it cannot be reached, or rejects the credentials.
pub(crate) async fn check_outbox_target(config: &Config) -> Result<Option<String>, Error> {
    match config.outbox.targets().first() {
        Some((table, relay)) => relay.inspect(&Contexts::of(config).table(table)).await.map(Some),
        None => Ok(None),
    }
}

/// The broker that `[outbox.*]` names, or the source's own.
async fn open_publisher(config: &Config) -> Result<Arc<dyn Publisher>, Error> {
    let contexts = Contexts::of(config);
    match config.outbox.targets().first() {
        Some((table, relay)) => relay.open(&contexts.table(table)).await,
        None => config.source.plugin().publisher(&contexts.source()).await,
    }
}
