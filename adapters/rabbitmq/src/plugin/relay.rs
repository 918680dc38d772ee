//! `[outbox.rabbitmq]`.

use std::sync::Arc;

use async_trait::async_trait;
use onceward::{Error, Publisher};
use onceward_plugin::{Checked, Context, RelayPlugin};

use super::connection::broker_table;
use crate::RabbitmqPublisher;

broker_table! {
    /// A RabbitMQ broker other than the source's. Each row names its queue, or `exchange/routing-key`.
    RabbitmqRelay [] {}
}

#[async_trait]
impl RelayPlugin for RabbitmqRelay {
    fn describe(&self) -> String {
        self.url.redacted()
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        self.connection().check(context)
    }

    async fn open(&self, context: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        Ok(Arc::new(RabbitmqPublisher::open(self.connection().endpoint(context)?).await?))
    }

    async fn inspect(&self, context: &Context<'_>) -> Result<String, Error> {
        self.open(context).await.map(|_| "its broker answers".to_owned())
    }
}
