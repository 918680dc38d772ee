//! `[handler.publish.sqs]`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::{Error, ErrorKind};
use onceward_plugin::value::{Address, HumanDuration};
use onceward_plugin::{Checked, Context, Exposure, Place, Secrets, Target, TargetPlugin, check};

use super::connection::sqs_table;
use super::source::place;
use crate::{SqsPublisher, SqsQueueStatus};

/// The longest time limit of one call that sends messages.
const LONGEST_SEND: Duration = Duration::from_secs(10);

sqs_table! {
    /// A send to an SQS queue. Credentials come from the standard AWS chain.
    SqsTarget [handler] {
        /// The queue's URL. One that ends in `.fifo` is a FIFO queue.
        pub queue_url: Address,
    }
}

impl Secrets for SqsTarget {
    fn exposure(&self) -> Option<Exposure> {
        self.connection().exposure(Some(&self.queue_url))
    }
}

#[async_trait]
impl TargetPlugin for SqsTarget {
    fn timeout(&self) -> HumanDuration {
        self.timeout
    }

    fn set_timeout(&mut self, timeout: HumanDuration) {
        self.timeout = timeout;
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        check::url(context, "queue_url", &self.queue_url, &["http", "https"])?;
        self.connection().check(context)
    }

    fn place(&self) -> (&'static str, Place) {
        ("queue_url", place(&self.queue_url))
    }

    async fn open(&self, context: &Context<'_>) -> Result<Target, Error> {
        let client = self.connection().endpoint().client().await;
        let url = self.queue_url.expose();
        // Sending does not need the right to read attributes.
        match SqsQueueStatus::read(&client, url).await {
            Err(error) if error.kind() == ErrorKind::Denied => {}
            read => {
                read?;
            }
        }
        let limit = context.handler_call_limit(LONGEST_SEND);
        let publisher = Arc::new(SqsPublisher::from_client(client).call_timeout(limit));
        Ok(Target { publisher, destination: url.to_owned() })
    }
}
