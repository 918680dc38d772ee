//! Looks at queues and exchanges without consuming or changing anything: [`QueueFacts`].

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ExchangeKind};
use onceward::Error;

use crate::connection::Connect;
use crate::endpoint::Endpoint;
use crate::error;
use crate::outgoing;

/// What a broker tells about a queue at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueFacts {
    /// Messages ready for delivery: without those that consumers have and have not acknowledged.
    pub ready: u32,
    /// Consumers subscribed.
    pub consumers: u32,
}

impl Endpoint {
    /// Asks the broker about a queue, on a connection of its own. Nothing is declared, consumed or changed.
    ///
    /// # Errors
    /// `Config` if the endpoint's values cannot be used or there is no such queue, `Denied` if the broker refuses, `Unavailable`
    /// or `Timeout` if it cannot be reached.
    pub async fn queue_facts(&self, queue: &str) -> Result<QueueFacts, Error> {
        let connection = self.connected().await?;
        ask(&connection, queue).await
    }

    /// Asks the broker about a [destination](crate::RabbitPublisher), as [`queue_facts`](Self::queue_facts) does about a
    /// queue. `None` for one that names an exchange: it is there, but whether a queue is bound to it AMQP does not tell.
    ///
    /// # Errors
    /// As [`queue_facts`](Self::queue_facts).
    pub async fn destination_facts(&self, destination: &str) -> Result<Option<QueueFacts>, Error> {
        let (exchange, routing_key) = outgoing::address(destination)?;
        let connection = self.connected().await?;
        if exchange.as_str().is_empty() {
            return ask(&connection, routing_key.as_str()).await.map(Some);
        }
        let operation = || format!("look at exchange {exchange}");
        let channel = connection.create_channel().await.map_err(|error| error::amqp(operation(), error))?;
        // The kind is not compared where nothing is declared.
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let declared =
            channel.exchange_declare(exchange.clone(), ExchangeKind::Direct, options, FieldTable::default());
        declared.await.map_err(|error| error::amqp(operation(), error))?;
        Ok(None)
    }

    async fn connected(&self) -> Result<Connection, Error> {
        self.check()?;
        Ok(self.connect().await?.connection)
    }
}

async fn ask(connection: &Connection, queue: &str) -> Result<QueueFacts, Error> {
    let operation = || format!("look at queue {queue}");
    let failed = |error| error::amqp(operation(), error);
    let channel = connection.create_channel().await.map_err(failed)?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared =
        channel.queue_declare(queue.into(), options, FieldTable::default()).await.map_err(failed)?;
    Ok(QueueFacts { ready: declared.message_count(), consumers: declared.consumer_count() })
}
