//! `[outbox.kafka]`.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use onceward::{Error, Publisher};
use onceward_plugin::{Checked, Context, Exposure, RelayPlugin};

use super::cluster::cluster_table;
use crate::KafkaPublisher;

/// Placeholders for clients that subscribe to nothing.
const TOPIC: &str = "none";
pub(super) const GROUP: &str = "onceward";

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

    fn exposure(&self) -> Option<Exposure> {
        self.cluster().exposure()
    }

    fn secret_files(&self, context: &Context<'_>) -> Vec<(String, PathBuf)> {
        self.cluster().secret_files(context)
    }

    async fn open(&self, context: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        let options = self.cluster().options(context, &[TOPIC], GROUP)?;
        Ok(Arc::new(KafkaPublisher::from_config(&options)?))
    }

    async fn inspect(&self, context: &Context<'_>) -> Result<String, Error> {
        Ok(match self.cluster().options(context, &[TOPIC], GROUP)?.brokers_up().await? {
            1 => "a cluster of one broker answers".to_owned(),
            brokers => format!("a cluster of {brokers} brokers answers"),
        })
    }
}
