//! `[outbox.rabbitmq]`.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use onceward::{Error, Publisher};
use onceward_plugin::{Checked, Context, Exposure, RelayPlugin};

use super::connection::broker_table;
use crate::RabbitPublisher;

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

    fn exposure(&self) -> Option<Exposure> {
        self.connection().exposure()
    }

    fn secret_files(&self, context: &Context<'_>) -> Vec<(String, PathBuf)> {
        self.connection().secret_files(context)
    }

    async fn open(&self, context: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        Ok(Arc::new(RabbitPublisher::open(self.connection().endpoint(context)?).await?))
    }

    async fn inspect(&self, context: &Context<'_>) -> Result<String, Error> {
        self.open(context).await.map(|_| "its broker answers".to_owned())
    }
}
