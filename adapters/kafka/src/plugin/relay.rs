//! `[outbox.kafka]`.

use std::sync::Arc;

use async_trait::async_trait;
use onceward::{Error, Publisher};
use onceward_plugin::{Checked, Context, RelayPlugin};

use super::cluster::cluster_table;
use crate::KafkaPublisher;

cluster_table! {
    /// A Kafka cluster other than the source's. Each row names its topic; its order key is the record key.
    KafkaRelay [] {}
}

#[async_trait]
impl RelayPlugin for KafkaRelay {
    fn describe(&self) -> String {
        let brokers: Vec<_> = self.brokers.iter().map(|broker| broker.redacted()).collect();
        format!("kafka:{}", brokers.join(","))
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        self.cluster().check(context)
    }

    async fn open(&self, context: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        Ok(Arc::new(KafkaPublisher::open(self.cluster().connection(context)?)?))
    }

    async fn inspect(&self, context: &Context<'_>) -> Result<String, Error> {
        Ok(match self.cluster().connection(context)?.count_brokers().await? {
            1 => "a cluster of one broker answers".to_owned(),
            brokers => format!("a cluster of {brokers} brokers answers"),
        })
    }
}
