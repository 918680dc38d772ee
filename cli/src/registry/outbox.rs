//! The outbox of a store, and the relay that empties it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use onceward::outbox::{OutboxStatus, OutboxStore, Relay, RelayConfig, RelayCounts};
use onceward::{Error, ErrorKind, Publisher};
use tokio_util::sync::CancellationToken;

use super::not_in_this_build;
use super::store::OpenStore;
use crate::config::{Config, OutboxTarget, Source};

/// A relay that is ready to run.
#[must_use = "a relay does nothing until it runs"]
pub(crate) struct ReadyRelay {
    /// What it does, also while it runs.
    pub(crate) counts: Arc<RelayCounts>,
    /// Works until the token fires.
    pub(crate) running: BoxFuture<'static, Result<(), Error>>,
}

/// The outbox of any store, whose type only its relay has to know.
pub(super) trait AnyOutbox: Send + Sync {
    /// See [`Relay::new`].
    fn relay(
        &self,
        publisher: Arc<dyn Publisher>,
        settings: RelayConfig,
        shutdown: CancellationToken,
    ) -> Result<ReadyRelay, Error>;

    /// See [`OutboxStore::status`].
    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, Error>>;
}

impl<S: OutboxStore + Clone> AnyOutbox for S {
    fn relay(
        &self,
        publisher: Arc<dyn Publisher>,
        settings: RelayConfig,
        shutdown: CancellationToken,
    ) -> Result<ReadyRelay, Error> {
        let relay = Relay::new(self.clone(), publisher, settings)?;
        let counts = relay.counts();
        Ok(ReadyRelay { counts, running: Box::pin(async move { relay.run(shutdown).await }) })
    }

    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, Error>> {
        OutboxStore::status(self)
    }
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
        let what =
            format!("[store.{}] has none; use [store.postgres] or [store.sqlite]", config.store.name());
        Error::new(ErrorKind::Config, "open the outbox", what)
    })
}

/// Where the outbox goes, in a few words without secrets.
pub(crate) fn describe_outbox_target(config: &Config) -> String {
    match (config.outbox.target(), &config.source) {
        (Some(OutboxTarget::Rabbitmq(rabbitmq)), _) => rabbitmq.url.redacted(),
        (Some(OutboxTarget::Kafka(kafka)), _) => {
            let brokers: Vec<_> = kafka.brokers.iter().map(|broker| broker.redacted()).collect();
            format!("kafka:{}", brokers.join(","))
        }
        (Some(OutboxTarget::Sqs(sqs)), _) => match (&sqs.endpoint, &sqs.region) {
            (Some(endpoint), _) => format!("sqs:{}", endpoint.redacted()),
            (None, Some(region)) => format!("sqs:{region}"),
            (None, None) => "sqs".to_owned(),
        },
        (None, Source::Rabbitmq(source)) => source.url.redacted(),
        (None, source) => format!("the broker of [source.{}]", source.name()),
    }
}

/// Looks whether the broker that `[outbox.*]` names answers, and says what it is. `None`: none is named, and so the source's
/// own is meant. The queues and topics are named by the rows, and so are not looked at.
///
/// # Errors
/// [`Error`] if it cannot be reached, or does not know the credentials.
pub(crate) async fn check_outbox_target(config: &Config) -> Result<Option<String>, Error> {
    let Some(target) = config.outbox.target() else { return Ok(None) };
    let answer: Result<&str, Error> = match target {
        #[cfg(feature = "rabbitmq")]
        OutboxTarget::Rabbitmq(target) => super::rabbitmq::outbox(config, target).await.map(|_| "its broker"),
        #[cfg(feature = "kafka")]
        OutboxTarget::Kafka(target) => match super::kafka::outbox_brokers(config, target).await? {
            1 => Ok("a cluster of one broker"),
            brokers => return Ok(Some(format!("a cluster of {brokers} brokers answers"))),
        },
        #[cfg(feature = "sqs")]
        OutboxTarget::Sqs(target) => super::sqs::outbox_answers(target).await.map(|()| "SQS"),
        #[allow(unreachable_patterns, reason = "a build may have them all")]
        other => Err(not_in_this_build(other.path())),
    };
    answer.map(|who| Some(format!("{who} answers")))
}

/// The broker that `[outbox.*]` names, or the source's own.
async fn open_publisher(config: &Config) -> Result<Arc<dyn Publisher>, Error> {
    match config.outbox.target() {
        #[cfg(feature = "rabbitmq")]
        Some(OutboxTarget::Rabbitmq(target)) => super::rabbitmq::outbox(config, target).await,
        #[cfg(feature = "kafka")]
        Some(OutboxTarget::Kafka(target)) => super::kafka::outbox(config, target),
        #[cfg(feature = "sqs")]
        Some(OutboxTarget::Sqs(target)) => super::sqs::outbox(target).await,
        #[allow(unreachable_patterns, reason = "a build may have them all")]
        Some(other) => Err(not_in_this_build(other.path())),
        None => source_publisher(config).await,
    }
}

async fn source_publisher(config: &Config) -> Result<Arc<dyn Publisher>, Error> {
    match &config.source {
        #[cfg(feature = "rabbitmq")]
        Source::Rabbitmq(source) => super::rabbitmq::publisher(config, source).await,
        #[cfg(feature = "sqs")]
        Source::Sqs(source) => super::sqs::publisher(source).await,
        #[cfg(feature = "kafka")]
        Source::Kafka(source) => super::kafka::publisher(config, source),
        Source::File(_) => {
            let what = "a file source has no broker to publish to; name one as [outbox.rabbitmq], [outbox.kafka] or \
                        [outbox.sqs]";
            Err(Error::new(ErrorKind::Config, "open the relay's broker", what))
        }
        #[allow(unreachable_patterns, reason = "a build may have them all")]
        other => Err(not_in_this_build(&format!("source.{}", other.name()))),
    }
}
