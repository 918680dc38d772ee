//! Looks at queues and exchanges without consuming or changing anything: [`QueueFacts`].

use lapin::options::ExchangeDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ExchangeKind};
use onceward::Error;

use crate::connection::Connect;
use crate::endpoint::Endpoint;
use crate::{error, gauge, outgoing, probe};

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
        gauge::ask(&connection, queue).await
    }

    /// As [`queue_facts`](Self::queue_facts), for a queue that is to be consumed: a stream is refused. The broker logs a
    /// refused subscription for it, which is how it reports the type of the queue.
    ///
    /// # Errors
    /// As [`queue_facts`](Self::queue_facts), and `Config` for a stream.
    pub async fn source_facts(&self, queue: &str) -> Result<QueueFacts, Error> {
        let connection = self.connected().await?;
        let facts = gauge::ask(&connection, queue).await?;
        probe::refuse_stream(&connection, queue).await?;
        Ok(facts)
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
            return gauge::ask(&connection, routing_key.as_str()).await.map(Some);
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
