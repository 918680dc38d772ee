//! `[handler.publish.rabbitmq]`.

use std::sync::Arc;

use async_trait::async_trait;
use onceward::Error;
use onceward_plugin::value::HumanDuration;
use onceward_plugin::{Checked, Context, Place, Target, TargetPlugin, check};

use super::connection::broker_table;
use crate::RabbitmqPublisher;

broker_table! {
    /// A publish to RabbitMQ, confirmed and mandatory.
    RabbitmqTarget [handler] {
        /// The exchange; empty for the default exchange, whose routing keys are queue names.
        #[serde(default)]
        pub exchange: String,
        /// The routing key.
        pub routing_key: String,
    }
}

#[async_trait]
impl TargetPlugin for RabbitmqTarget {
    fn timeout(&self) -> HumanDuration {
        self.timeout
    }

    fn set_timeout(&mut self, timeout: HumanDuration) {
        self.timeout = timeout;
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        self.connection().check(context)?;
        if self.exchange.contains('/') {
            return Err(context.problem(
                "exchange",
                "contains a slash, which separates exchange and routing key",
                "use an exchange without one",
            ));
        }
        // Some kinds of exchanges ignore the routing key.
        if self.exchange.is_empty() { check::text(context, "routing_key", &self.routing_key) } else { Ok(()) }
    }

    fn place(&self) -> (&'static str, Place) {
        // What an exchange routes to is not known here.
        let name =
            if self.exchange.is_empty() { self.routing_key.clone() } else { format!("{}/", self.exchange) };
        ("routing_key", Place { system: "rabbitmq", servers: vec![self.connection().server()], name })
    }

    async fn open(&self, context: &Context<'_>) -> Result<Target, Error> {
        let endpoint = self.connection().endpoint(context)?;
        let destination = format!("{}/{}", self.exchange, self.routing_key);
        endpoint.destination_status(&destination).await?;
        let limit = context.handler_call_limit(RabbitmqPublisher::CONFIRM_TIMEOUT);
        let publisher = RabbitmqPublisher::open(endpoint).await?.confirm_timeout(limit);
        Ok(Target { publisher: Arc::new(publisher), destination })
    }
}
