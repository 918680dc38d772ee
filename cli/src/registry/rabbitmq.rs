//! Maps `[source.rabbitmq]` to its adapter.

use std::sync::Arc;

use onceward::{DeadLetters, Error};
use onceward_rabbitmq::{Endpoint, RabbitConfig, RabbitConsumer, RabbitPublisher};

use super::credentials::Login;
use crate::config::{Config, RabbitmqSource};

pub(super) async fn open(config: &Config, source: &RabbitmqSource) -> Result<RabbitConsumer, Error> {
    let mut options = RabbitConfig::new(String::new(), source.queue.as_str());
    options.endpoint = endpoint(config, source)?;
    // The configuration's own check has seen to the range.
    options.queue.prefetch = u16::try_from(source.prefetch).unwrap_or(u16::MAX);
    options.queue.single_active_consumer = source.single_active_consumer;
    options.queue.ack_timeout = Some(source.ack_timeout.get()).filter(|timeout| !timeout.is_zero());
    options.queue.delivery_limit = source.delivery_limit;
    options.queue.wait_queues_from = source.wait_queues_from.map(|shortest| shortest.get());
    RabbitConsumer::open(options).await
}

pub(super) async fn dead_letters(
    config: &Config,
    source: &RabbitmqSource,
    to: &str,
) -> Result<DeadLetters, Error> {
    let publisher = RabbitPublisher::open(endpoint(config, source)?).await?;
    Ok(DeadLetters::new(Arc::new(publisher), to))
}

/// The broker of a RabbitMQ source.
pub(crate) fn endpoint(config: &Config, source: &RabbitmqSource) -> Result<Endpoint, Error> {
    let login = Login::read(config, "source.rabbitmq", source.credentials())?;
    let mut endpoint = Endpoint::new(login.within(&source.url)?);
    endpoint.ca_file = source.ca_file.as_ref().map(|file| config.resolve(file));
    Ok(endpoint)
}
