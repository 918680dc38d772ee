//! Inspects queues and exchanges without consuming or changing anything: [`RabbitmqQueueStatus`].

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind};
use onceward::Error;

use crate::connection::connector::AmqpConnector;
use crate::connection::endpoint::RabbitmqEndpoint;
use crate::error;
use crate::publish::publishing::parse_destination;
use crate::subscription::stream_check;

/// Message and consumer counts of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RabbitmqQueueStatus {
    /// Messages ready for delivery, without delivered and unacknowledged ones.
    pub ready: u32,
    /// Number of consumers.
    pub consumers: u32,
}

impl RabbitmqEndpoint {
    /// Queries a queue on a connection of its own. Nothing is declared, consumed or changed.
    ///
    /// # Errors
    /// `Config` if the endpoint's values are invalid or the queue does not exist, `Denied` if the broker refuses,
    /// `Unavailable` or `Timeout` if it cannot be reached.
    pub async fn queue_status(&self, queue: &str) -> Result<RabbitmqQueueStatus, Error> {
        let connection = self.open_connection().await?;
        query_queue(&connection, queue).await
    }

    /// Queries a queue as [`queue_status`](Self::queue_status) does, and fails for a stream, which is not supported as
    /// source. The broker logs a refused subscription, which is how it reports the type of the queue.
    ///
    /// # Errors
    /// As [`queue_status`](Self::queue_status), and `Config` for a stream.
    pub async fn source_status(&self, queue: &str) -> Result<RabbitmqQueueStatus, Error> {
        let connection = self.open_connection().await?;
        let status = query_queue(&connection, queue).await?;
        stream_check::refuse_stream(&connection, queue).await?;
        Ok(status)
    }

    /// Queries a [destination](crate::RabbitmqPublisher). `None` for an existing exchange: AMQP does not report whether
    /// a queue is bound to it.
    ///
    /// # Errors
    /// As [`queue_status`](Self::queue_status).
    pub async fn destination_status(&self, destination: &str) -> Result<Option<RabbitmqQueueStatus>, Error> {
        let (exchange, routing_key) = parse_destination(destination)?;
        let connection = self.open_connection().await?;
        if exchange.as_str().is_empty() {
            return query_queue(&connection, routing_key.as_str()).await.map(Some);
        }
        let operation = || format!("inspect exchange {exchange}");
        let channel =
            connection.create_channel().await.map_err(|error| error::classify(operation(), error))?;
        // The kind is not compared in a passive declaration.
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let declared =
            channel.exchange_declare(exchange.clone(), ExchangeKind::Direct, options, FieldTable::default());
        declared.await.map_err(|error| error::classify(operation(), error))?;
        Ok(None)
    }

    async fn open_connection(&self) -> Result<Connection, Error> {
        self.check()?;
        Ok(self.connect().await?.connection)
    }
}

/// Queries a queue on a new channel, which the broker closes if the queue does not exist.
pub(crate) async fn query_queue(connection: &Connection, queue: &str) -> Result<RabbitmqQueueStatus, Error> {
    let failed = |error| error::classify(format!("inspect queue {queue}"), error);
    let channel = connection.create_channel().await.map_err(failed)?;
    let status = query_queue_on(&channel, queue).await?;
    let _ = channel.close(200, "OK".into()).await;
    Ok(status)
}

/// Queries a queue on a channel, which the broker closes if the queue does not exist.
pub(crate) async fn query_queue_on(channel: &Channel, queue: &str) -> Result<RabbitmqQueueStatus, Error> {
    let operation = || format!("inspect queue {queue}");
    let name = ShortString::try_new(queue)
        .map_err(|_| error::config(operation(), "its name is longer than 255 bytes"))?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(name, options, FieldTable::default()).await;
    let declared = declared.map_err(|error| error::classify(operation(), error))?;
    Ok(RabbitmqQueueStatus { ready: declared.message_count(), consumers: declared.consumer_count() })
}
