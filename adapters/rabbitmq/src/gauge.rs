//! Asks how many messages wait in a queue, now and again: [`Gauge`].

use std::sync::Arc;
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection};
use onceward::Error;
use onceward::telemetry::SourceHealth;
use tokio::task::JoinHandle;

use crate::config::QueueConfig;
use crate::error;
use crate::facts::QueueFacts;

/// How often the queue is looked at.
const EVERY: Duration = Duration::from_secs(5);

/// Keeps the lag of a source current, on a channel of its own; ends when it is dropped.
pub(crate) struct Gauge(JoinHandle<()>);

impl Gauge {
    pub(crate) fn start(channel: Channel, queue: &QueueConfig, health: &Arc<SourceHealth>) -> Self {
        let (name, health) = (queue.name.clone(), Arc::clone(health));
        Self(tokio::spawn(async move {
            while let Ok(facts) = ask_on(&channel, &name).await {
                health.set_lag(Some(facts.ready.into()));
                tokio::time::sleep(EVERY).await;
            }
            // The queue is gone, and the channel with it; what consumes it notices as well.
            health.set_lag(None);
        }))
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks on a channel that is opened for it: it is closed if there is no such queue.
pub(crate) async fn ask(connection: &Connection, queue: &str) -> Result<QueueFacts, Error> {
    let failed = |error| error::amqp(format!("look at queue {queue}"), error);
    let channel = connection.create_channel().await.map_err(failed)?;
    let facts = ask_on(&channel, queue).await?;
    let _ = channel.close(200, "OK".into()).await;
    Ok(facts)
}

async fn ask_on(channel: &Channel, queue: &str) -> Result<QueueFacts, Error> {
    let operation = || format!("look at queue {queue}");
    let name = ShortString::try_new(queue)
        .map_err(|_| error::config(operation(), "its name is longer than 255 bytes"))?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(name, options, FieldTable::default()).await;
    let declared = declared.map_err(|error| error::amqp(operation(), error))?;
    Ok(QueueFacts { ready: declared.message_count(), consumers: declared.consumer_count() })
}
