//! A temporary queue beside the source's: [`create`].

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use onceward::Error;
use onceward_plugin::{SourcePlugin, TemporarySource};

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

/// A queue to be declared.
pub(super) struct TemporaryQueue<'a> {
    /// The source's queue, whose type it has. It is inspected, and nothing of it is delivered.
    pub(super) beside: &'a str,
    pub(super) name: String,
    pub(super) single_active_consumer: bool,
    pub(super) delivery_limit: Option<u32>,
}

/// Declares a durable queue. `table` names it.
pub(super) async fn create(
    endpoint: RabbitmqEndpoint,
    queue: TemporaryQueue<'_>,
    table: Box<dyn SourcePlugin>,
) -> Result<TemporarySource, Error> {
    let operation = format!("create the temporary queue {}", queue.name);
    let name = ShortString::try_new(queue.name.as_str())
        .map_err(|_| error::config(operation.clone(), "its name would be longer than 255 bytes"))?;
    endpoint.check()?;
    let publisher = Arc::new(RabbitmqPublisher::open(endpoint.clone()).await?);
    let connection = endpoint.connect().await?.connection;
    query_queue(&connection, queue.beside).await?;
    let asked = tokio::time::timeout(LIMIT, query_queue_type(&connection, queue.beside)).await;
    let kind = asked.ok().flatten().unwrap_or_else(|| "quorum".to_owned());
    if kind == "stream" {
        return Err(stream_error(queue.beside));
    }
    let failed = |error| error::classify(operation.clone(), error);
    let channel = connection.create_channel().await.map_err(failed)?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name, options, arguments(&queue, &kind)).await.map_err(failed)?;
    let _ = connection.close(200, "OK".into()).await;

    let (place, destination) = (format!("{kind} queue {}", queue.name), format!("/{}", queue.name));
    Ok(TemporarySource::new(place, table, publisher, destination, remove(endpoint, queue.name)))
}

fn arguments(queue: &TemporaryQueue<'_>, kind: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), long_string(kind));
    let expires_ms = i64::try_from(EXPIRES.as_millis()).unwrap_or(i64::MAX);
    arguments.insert("x-expires".into(), AMQPValue::LongLongInt(expires_ms));
    if queue.single_active_consumer {
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    if let Some(limit) = queue.delivery_limit.filter(|_| kind == "quorum") {
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
