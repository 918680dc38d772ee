//! Shared test support: endpoints, topics and subscriptions on a real server.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use google_cloud_pubsub::model::Message;
use onceward_pubsub::{PubsubConfig, PubsubCredentials, PubsubEndpoint};
use onceward_test_servers::pubsub::Pubsub;
use serde_json::Value;

/// The address of a server, without credentials.
pub fn endpoint(server: &Pubsub) -> PubsubEndpoint {
    at(server.endpoint())
}

/// Another address, such as that of a proxy.
pub fn at(url: String) -> PubsubEndpoint {
    let mut endpoint = PubsubEndpoint::default();
    endpoint.url = Some(url);
    endpoint.credentials = PubsubCredentials::Anonymous;
    endpoint
}

/// A topic and a subscription of its own on the shared server.
pub struct Place {
    pub server: &'static Pubsub,
    pub topic: String,
    pub subscription: String,
}

impl Place {
    /// With properties of the subscription as in the REST call that creates one.
    pub fn create(name: &str, properties: &Value) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let server = Pubsub::shared();
        let name = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let topic = server.topic(&name);
        let subscription = server.subscription_with(&name, &topic, properties);
        Self { server, topic, subscription }
    }

    /// The shortest ack deadline.
    pub fn config(&self) -> PubsubConfig {
        let mut config = PubsubConfig::new(&self.subscription);
        config.endpoint = endpoint(self.server);
        config.subscription.ack_deadline = Duration::from_secs(10);
        config
    }

    /// Publishes messages with Google's client, in order.
    pub async fn publish(&self, messages: impl IntoIterator<Item = Message>) {
        let publisher = endpoint(self.server).publisher().await.unwrap().publisher(&self.topic).build();
        let sent: Vec<_> = messages.into_iter().map(|message| publisher.publish(message)).collect();
        for answer in join_all(sent).await {
            answer.unwrap();
        }
    }

    /// True if nothing waits and nothing is held.
    pub fn is_empty(&self) -> bool {
        self.server.depth(&self.subscription) == (0, 0)
    }
}

/// Waits until `so`, asking every 20 ms, for at most `limit`.
pub async fn until(limit: Duration, what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !so() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
