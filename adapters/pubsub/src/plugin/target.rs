//! `[handler.publish.pubsub]`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::Error;
use onceward_plugin::value::HumanDuration;
use onceward_plugin::{Checked, Context, Place, Target, TargetPlugin};

use super::connection::{PubsubConnection, check_name, pubsub_table};
use crate::PubsubPublisher;
use crate::connection::names::Collection;
use crate::inspect::check_topic;

/// The longest time limit of one publish.
const LONGEST_PUBLISH: Duration = Duration::from_secs(10);

pubsub_table! {
    /// A publish to a Pub/Sub topic.
    PubsubTarget [handler] {
        /// The topic: `projects/PROJECT/topics/NAME`, or `NAME` with a project.
        pub topic: String,
    }
}

#[async_trait]
impl TargetPlugin for PubsubTarget {
    fn timeout(&self) -> HumanDuration {
        self.timeout
    }

    fn set_timeout(&mut self, timeout: HumanDuration) {
        self.timeout = timeout;
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        self.connection().check(context)?;
        check_name(context, "topic", Collection::Topics, &self.topic, self.project.as_deref())
    }

    fn place(&self) -> (&'static str, Place) {
        ("topic", place(self.connection(), &self.topic))
    }

    async fn open(&self, context: &Context<'_>) -> Result<Target, Error> {
        let endpoint = self.connection().endpoint(context);
        let destination = Collection::Topics.full_name(&self.topic, self.project.as_deref())?;
        check_topic(&endpoint, &destination).await?;
        let limit = context.handler_call_limit(LONGEST_PUBLISH);
        let publisher = Arc::new(PubsubPublisher::open(endpoint).await?.call_timeout(limit));
        Ok(Target { publisher, destination })
    }
}

/// A topic as a place that messages come from or go to.
pub(super) fn place(connection: PubsubConnection<'_>, topic: &str) -> Place {
    let name = Collection::Topics.full_name(topic, connection.project).unwrap_or_else(|_| topic.to_owned());
    Place { system: "pubsub", servers: vec![connection.server()], name }
}
