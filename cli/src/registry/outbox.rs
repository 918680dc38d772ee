//! The outbox of a store, and the relay that empties it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use onceward::outbox::{OutboxStatus, RelayCounts};
use onceward::{Error, ErrorKind, Publisher};
use tokio_util::sync::CancellationToken;

use super::not_in_this_build;
use super::store::OpenStore;
use crate::config::{Config, Source};

/// A relay that is ready to run.
#[must_use = "a relay does nothing until it runs"]
pub(crate) struct ReadyRelay {
    /// What it does, also while it runs.
    pub(crate) counts: Arc<RelayCounts>,
    /// Works until the token fires.
    pub(crate) running: BoxFuture<'static, Result<(), Error>>,
}

/// A relay from the store's outbox to its broker.
///
/// # Errors
/// [`Error`] if the store has no outbox, or the broker cannot be reached.
pub(crate) async fn open_relay(
    config: &Config,
    store: &OpenStore,
    shutdown: CancellationToken,
) -> Result<ReadyRelay, Error> {
    match &store.inbox {
        #[cfg(feature = "postgres")]
        Some(super::store::Inbox::Postgres(store)) => {
            let publisher = open_publisher(config).await?;
            let keep = config.outbox.keep.get();
            let settings = onceward::outbox::RelayConfig { keep, ..Default::default() };
            let relay = onceward::outbox::Relay::new(store.outbox(), publisher, settings)?;
            let counts = relay.counts();
            Ok(ReadyRelay { counts, running: Box::pin(async move { relay.run(shutdown).await }) })
        }
        _ => {
            let _ = (shutdown, open_publisher(config));
            Err(without_outbox(config))
        }
    }
}

/// What waits in the store's outbox.
///
/// # Errors
/// [`Error`] if the store has no outbox, or does not answer.
pub(crate) async fn outbox_status(config: &Config, store: &OpenStore) -> Result<OutboxStatus, Error> {
    match &store.inbox {
        #[cfg(feature = "postgres")]
        Some(super::store::Inbox::Postgres(store)) => {
            onceward::outbox::OutboxStore::status(&store.outbox()).await
        }
        _ => Err(without_outbox(config)),
    }
}

fn without_outbox(config: &Config) -> Error {
    let what = format!("[store.{}] has none; use [store.postgres]", config.store.name());
    Error::new(ErrorKind::Config, "open the outbox", what)
}

/// Where the outbox goes, in a few words without secrets.
pub(crate) fn describe_outbox_target(config: &Config) -> String {
    match (&config.outbox.rabbitmq, &config.source) {
        (Some(rabbitmq), _) => rabbitmq.url.redacted(),
        (None, Source::Rabbitmq(source)) => source.url.redacted(),
        (None, source) => format!("the broker of [source.{}]", source.name()),
    }
}

/// The broker that `[outbox.*]` names, or the source's own.
async fn open_publisher(config: &Config) -> Result<Arc<dyn Publisher>, Error> {
    #[cfg(feature = "rabbitmq")]
    if let Some(target) = &config.outbox.rabbitmq {
        return super::rabbitmq::outbox(config, target).await;
    }
    match &config.source {
        #[cfg(feature = "rabbitmq")]
        Source::Rabbitmq(source) => super::rabbitmq::publisher(config, source).await,
        #[cfg(feature = "sqs")]
        Source::Sqs(source) => Ok(super::sqs::publisher(source).await),
        #[cfg(feature = "kafka")]
        Source::Kafka(source) => super::kafka::publisher(config, source),
        Source::File(_) => {
            let what = "a file source has no broker to publish to; name one as [outbox.rabbitmq]";
            Err(Error::new(ErrorKind::Config, "open the relay's broker", what))
        }
        #[allow(unreachable_patterns, reason = "a build may have them all")]
        other => Err(not_in_this_build(&format!("source.{}", other.name()))),
    }
}
