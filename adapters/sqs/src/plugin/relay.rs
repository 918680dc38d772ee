//! `[outbox.sqs]`.

use std::sync::Arc;

use async_trait::async_trait;
use onceward::{Error, Publisher};
use onceward_plugin::{Checked, Context, Exposure, RelayPlugin, Secrets};

use super::connection::sqs_table;
use crate::SqsPublisher;

sqs_table! {
    /// An SQS other than the source's. Each row names the URL of its queue; in a FIFO queue its order key is the group.
    SqsRelay [] {}
}

impl Secrets for SqsRelay {
    fn exposure(&self) -> Option<Exposure> {
        self.connection().exposure(None)
    }
}

#[async_trait]
impl RelayPlugin for SqsRelay {
    fn describe(&self) -> String {
        match (&self.endpoint, &self.region) {
            (Some(endpoint), _) => format!("sqs:{}", endpoint.redacted()),
            (None, Some(region)) => format!("sqs:{region}"),
            (None, None) => "sqs".to_owned(),
        }
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        self.connection().check(context)
    }

    async fn open(&self, _: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        Ok(Arc::new(SqsPublisher::open(self.connection().endpoint()).await?))
    }

    async fn inspect(&self, _: &Context<'_>) -> Result<String, Error> {
        self.connection().endpoint().check_connection().await.map(|()| "SQS answers".to_owned())
    }
}
