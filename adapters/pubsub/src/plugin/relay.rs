//! `[outbox.pubsub]`.

use std::sync::Arc;

use async_trait::async_trait;
use onceward::{Error, Publisher};
use onceward_plugin::{Checked, Context, RelayPlugin};

use super::connection::pubsub_table;
use crate::PubsubPublisher;
use crate::connection::reachability::Reachability;

pubsub_table! {
    /// A Pub/Sub other than the source's. Each row names its topic; its order key is the ordering key.
    PubsubRelay [] {}
}

#[async_trait]
impl RelayPlugin for PubsubRelay {
    fn describe(&self) -> String {
        self.connection().describe()
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        self.connection().check(context)
    }

    async fn open(&self, context: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        Ok(Arc::new(PubsubPublisher::open(self.connection().endpoint(context)).await?))
    }

    async fn inspect(&self, context: &Context<'_>) -> Result<String, Error> {
        let endpoint = self.connection().endpoint(context);
        // Rows name their topics, so that no topic is known here.
        endpoint.publisher().await?;
        Reachability::of(&endpoint)?.check().await.map(|()| "Pub/Sub is reachable".to_owned())
    }
}
