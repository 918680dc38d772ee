//! Connections that the caller makes: [`RabbitmqClient`].

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use lapin::Connection;
use onceward::Error;

use super::connector::{AmqpConnector, OpenConnection};
use crate::error;

/// A source of connections made by the caller, for
/// [`RabbitmqConsumer::from_client`](crate::RabbitmqConsumer::from_client) and
/// [`RabbitmqPublisher::from_client`](crate::RabbitmqPublisher::from_client).
#[derive(Clone)]
pub struct RabbitmqClient(Arc<dyn AmqpConnector>);

impl RabbitmqClient {
    /// Opens connections with `factory`, which is called again whenever a connection is lost. Each connection must be
    /// new, used by nothing else, and without automatic recovery: it is closed and replaced as needed.
    pub fn new<F, Fut>(factory: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = lapin::Result<Connection>> + Send + 'static,
    {
        Self(Arc::new(FactoryConnector(factory)))
    }

    pub(crate) fn into_connector(self) -> Arc<dyn AmqpConnector> {
        self.0
    }
}

impl fmt::Debug for RabbitmqClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitmqClient").finish_non_exhaustive()
    }
}

/// Opens connections with a function of the caller.
struct FactoryConnector<F>(F);

#[async_trait]
impl<F, Fut> AmqpConnector for FactoryConnector<F>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = lapin::Result<Connection>> + Send,
{
    async fn connect(&self) -> Result<OpenConnection, Error> {
        match (self.0)().await {
            Ok(connection) => Ok(OpenConnection { connection, defects: Arc::default() }),
            Err(error) => Err(error::classify("connect to RabbitMQ", error)),
        }
    }
}
