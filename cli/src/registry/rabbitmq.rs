//! Maps `[source.rabbitmq]`, `[handler.publish.rabbitmq]` and `[outbox.rabbitmq]` to their adapter.

use std::sync::Arc;

use onceward::{Consumer, DeadLetters, Error, ErrorKind, OwnHeaders, Publisher};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqPublisher};

use super::credentials::Login;
use super::own_headers::own_headers;
use crate::config::{Config, OutboxRabbitmq, RabbitmqBroker, RabbitmqSource, RabbitmqTarget};

pub(super) async fn open(config: &Config, source: &RabbitmqSource) -> Result<RabbitmqConsumer, Error> {
    let mut options = RabbitmqConfig::new(String::new(), source.queue.as_str());
    options.endpoint = endpoint(config, source)?;
    // The configuration's own check has seen to the range.
    let prefetch = source.prefetch(super::settings::concurrency(config));
    options.queue.prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
    options.queue.single_active_consumer = source.single_active_consumer;
    options.queue.ack_timeout = Some(source.ack_timeout.get()).filter(|timeout| !timeout.is_zero());
    options.queue.delivery_limit = source.delivery_limit;
    options.queue.wait_queues_from = source.wait_queues_from.map(|shortest| shortest.get());
    options.queue.own_headers = own_headers(config)?;
    RabbitmqConsumer::open(options).await
}

pub(super) async fn dead_letters(
    config: &Config,
    source: &RabbitmqSource,
    to: &str,
) -> Result<DeadLetters, Error> {
    // A message that fails for good would be held until somebody declares it.
    endpoint(config, source)?.destination_status(to).await.map_err(|error| {
        let what = "see dead_letter.to: its queue or exchange must be there before the first message fails";
        Error::new(error.kind(), "use the place for dead letters", what).with_source(error)
    })?;
    let publisher =
        RabbitmqPublisher::open(endpoint(config, source)?).await?.own_headers(own_headers(config)?);
    Ok(DeadLetters::new(Arc::new(publisher), to))
}

/// Takes letters from the queue `place`, and gives them back to the source's.
pub(super) async fn letters(
    config: &Config,
    source: &RabbitmqSource,
    place: &str,
    own: &OwnHeaders,
) -> Result<(Box<dyn Consumer>, Arc<dyn Publisher>, Vec<String>), Error> {
    let queue = place.strip_prefix('/').unwrap_or(place);
    if !place.starts_with('/') && place.contains('/') {
        let what = "dead_letter.to names an exchange, from which nothing can be taken; say with --from which queue holds its \
                    letters, with a slash in front if its name has one";
        return Err(Error::new(ErrorKind::Config, "take dead letters back", what));
    }
    let mut options = RabbitmqConfig::new(String::new(), queue);
    options.endpoint = endpoint(config, source)?;
    options.queue.own_headers = own.clone();
    let from = RabbitmqConsumer::open(options).await?;
    let publisher = RabbitmqPublisher::open(endpoint(config, source)?).await?.own_headers(own.clone());
    // With a slash in front it is a queue, whatever its name.
    Ok((Box::new(from), Arc::new(publisher), vec![format!("/{}", source.queue)]))
}

/// A publisher to the source's own broker.
pub(super) async fn publisher(config: &Config, source: &RabbitmqSource) -> Result<Arc<dyn Publisher>, Error> {
    Ok(Arc::new(RabbitmqPublisher::open(endpoint(config, source)?).await?))
}

/// The publisher of `[outbox.rabbitmq]`.
pub(super) async fn outbox(config: &Config, target: &OutboxRabbitmq) -> Result<Arc<dyn Publisher>, Error> {
    let endpoint = broker(config, "outbox.rabbitmq", target.broker())?;
    Ok(Arc::new(RabbitmqPublisher::open(endpoint).await?))
}

/// The publisher of `[handler.publish.rabbitmq]` and its destination, which is there.
pub(super) async fn target(
    config: &Config,
    target: &RabbitmqTarget,
) -> Result<(Arc<dyn Publisher>, String), Error> {
    let endpoint = broker(config, "handler.publish.rabbitmq", target.broker())?;
    let destination = format!("{}/{}", target.exchange, target.routing_key);
    // A queue that is missing would cost every message its attempts.
    endpoint.destination_status(&destination).await?;
    let limit = super::publisher::confirm_limit(config, RabbitmqPublisher::CONFIRM_TIMEOUT);
    Ok((Arc::new(RabbitmqPublisher::open(endpoint).await?.confirm_timeout(limit)), destination))
}

/// The broker of a RabbitMQ source.
pub(crate) fn endpoint(config: &Config, source: &RabbitmqSource) -> Result<RabbitmqEndpoint, Error> {
    broker(config, "source.rabbitmq", source.broker())
}

/// The broker that stands in `table`.
fn broker(config: &Config, table: &str, broker: RabbitmqBroker<'_>) -> Result<RabbitmqEndpoint, Error> {
    let login = Login::read(config, table, broker.credentials)?;
    let mut endpoint = RabbitmqEndpoint::new(login.within(broker.url)?);
    // It is read again for each new connection.
    endpoint.password_file = broker.credentials.password_file.map(|file| config.resolve(file));
    endpoint.allow_plaintext = broker.allow_plaintext;
    endpoint.ca_file = broker.ca_file.map(|file| config.resolve(file));
    Ok(endpoint)
}
