//! `[handler.publish.kafka]`.

use std::sync::Arc;

use async_trait::async_trait;
use onceward::Error;
use onceward_plugin::value::HumanDuration;
use onceward_plugin::{Checked, Context, Place, Target, TargetPlugin, check};

use super::cluster::{cluster_table, inspect_writable};
use crate::KafkaPublisher;

cluster_table! {
    /// A publish to a Kafka topic, acknowledged by all in-sync replicas.
    KafkaTarget [handler] {
        /// The topic.
        pub topic: String,
    }
}

#[async_trait]
impl TargetPlugin for KafkaTarget {
    fn timeout(&self) -> HumanDuration {
        self.timeout
    }

    fn set_timeout(&mut self, timeout: HumanDuration) {
        self.timeout = timeout;
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        self.cluster().check(context)?;
        check::text(context, "topic", &self.topic)
    }

    fn place(&self) -> (&'static str, Place) {
        let servers = self.cluster().servers();
        ("topic", Place { system: "kafka", servers, name: self.topic.clone() })
    }

    async fn open(&self, context: &Context<'_>) -> Result<Target, Error> {
        let mut connection = self.cluster().connection(context)?;
        inspect_writable(&connection, &self.topic).await?;
        let limit = context.handler_call_limit(KafkaPublisher::CONFIRM_TIMEOUT).as_millis().to_string();
        connection.properties.entry("message.timeout.ms".to_owned()).or_insert(limit);
        let publisher = Arc::new(KafkaPublisher::open(connection)?);
        Ok(Target { publisher, destination: self.topic.clone() })
    }
}
