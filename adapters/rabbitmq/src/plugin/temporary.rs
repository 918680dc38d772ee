//! A temporary queue beside the source's: [`create`].

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use onceward::Error;
use onceward_plugin::{Context, TemporarySource};

use super::source::RabbitmqSource;
use crate::connection::connector::AmqpConnector;
use crate::connection::endpoint::RabbitmqEndpoint;
use crate::error;
use crate::format::native::long_string;
use crate::inspect::query_queue;
use crate::publisher::RabbitmqPublisher;
use crate::subscription::stream_check::{query_queue_type, stream_error};

/// After so long without a consumer the broker deletes the queue by itself.
const EXPIRES: Duration = Duration::from_secs(3_600);
/// The timeout of a query.
const LIMIT: Duration = Duration::from_secs(5);

/// Declares a durable queue of the type of the source's queue, named as that with `suffix` behind it. The source's queue is
/// inspected; nothing of it is delivered.
pub(super) async fn create(
    source: &RabbitmqSource,
    context: &Context<'_>,
    suffix: &str,
) -> Result<TemporarySource, Error> {
    let endpoint = source.endpoint(context)?;
    let queue = format!("{}.{suffix}", source.queue);
    let operation = format!("create the temporary queue {queue}");
    let name = ShortString::try_new(queue.as_str())
        .map_err(|_| error::config(operation.clone(), "its name would be longer than 255 bytes"))?;
    endpoint.check()?;
    let publisher = Arc::new(RabbitmqPublisher::open(endpoint.clone()).await?);
    let connection = endpoint.connect().await?.connection;
    query_queue(&connection, &source.queue).await?;
    let asked = tokio::time::timeout(LIMIT, query_queue_type(&connection, &source.queue)).await;
    let kind = asked.ok().flatten().unwrap_or_else(|| "quorum".to_owned());
    if kind == "stream" {
        return Err(stream_error(&source.queue));
    }
    let failed = |error| error::classify(operation.clone(), error);
    let channel = connection.create_channel().await.map_err(failed)?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name, options, arguments(source, &kind)).await.map_err(failed)?;
    let _ = connection.close(200, "OK".into()).await;

    let table = RabbitmqSource { queue: queue.clone(), wait_queues_from: None, ..source.clone() };
    let (place, destination) = (format!("{kind} queue {queue}"), format!("/{queue}"));
    Ok(TemporarySource::new(place, Box::new(table), publisher, destination, remove(endpoint, queue)))
}

fn arguments(source: &RabbitmqSource, kind: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), long_string(kind));
    let expires_ms = i64::try_from(EXPIRES.as_millis()).unwrap_or(i64::MAX);
    arguments.insert("x-expires".into(), AMQPValue::LongLongInt(expires_ms));
    if source.single_active_consumer {
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    if let Some(limit) = source.delivery_limit.filter(|_| kind == "quorum") {
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit.into()));
    }
    arguments
}

async fn remove(endpoint: RabbitmqEndpoint, queue: String) -> Result<(), Error> {
    let failed = |error| error::classify(format!("remove the temporary queue {queue}"), error);
    let connection = endpoint.connect().await?.connection;
    let channel = connection.create_channel().await.map_err(failed)?;
    let name = ShortString::try_new(queue.as_str()).unwrap_or_default();
    // A queue that is not there is not an error.
    channel.queue_delete(name, QueueDeleteOptions::default()).await.map_err(failed)?;
    let _ = connection.close(200, "OK".into()).await;
    Ok(())
}
