//! A temporary topic and subscription beside the source's: [`create`].

use std::sync::Arc;
use std::time::Duration;

use google_cloud_pubsub::client::{SubscriptionAdmin, TopicAdmin};
use onceward::{Error, Publisher};
use onceward_plugin::{SourcePlugin, TemporarySource};

use crate::PubsubSubscriptionStatus;
use crate::connection::endpoint::PubsubEndpoint;
use crate::error;

/// The timeout of a request.
const LIMIT: Duration = Duration::from_secs(10);

/// A subscription to be created, with a topic. Names are full.
pub(super) struct TemporarySubscription<'a> {
    /// The source's subscription, with whose delivery it delivers.
    pub(super) beside: &'a str,
    pub(super) name: String,
    pub(super) topic: String,
    pub(super) ordered: bool,
    pub(super) ack_deadline: Duration,
}

/// Creates a topic and a subscription of it. `table` names both.
pub(super) async fn create(
    endpoint: &PubsubEndpoint,
    publisher: Arc<dyn Publisher>,
    wanted: TemporarySubscription<'_>,
    table: Box<dyn SourcePlugin>,
) -> Result<TemporarySource, Error> {
    let TemporarySubscription { beside, name, topic, ordered, ack_deadline } = wanted;
    let status = PubsubSubscriptionStatus::read_if_offered(endpoint, beside).await?;
    let (topics, subscriptions) = (endpoint.topic_admin().await?, endpoint.subscription_admin().await?);
    let call = topics.create_topic().set_name(&topic);
    request(format!("create the temporary topic {topic}"), call.send()).await?;
    let call = subscriptions
        .create_subscription()
        .set_name(&name)
        .set_topic(&topic)
        .set_ack_deadline_seconds(i32::try_from(ack_deadline.as_secs()).unwrap_or(i32::MAX))
        .set_enable_message_ordering(ordered)
        .set_enable_exactly_once_delivery(status.exactly_once);
    let created = request(format!("create the temporary subscription {name}"), call.send()).await;
    if let Err(error) = created {
        remove_topic(&topics, &topic).await?;
        return Err(error);
    }

    let place = format!("topic {topic}, subscription {name}");
    let removal = remove(topics, subscriptions, topic.clone(), name);
    Ok(TemporarySource::new(place, table, publisher, topic, removal))
}

async fn remove(
    topics: TopicAdmin,
    subscriptions: SubscriptionAdmin,
    topic: String,
    subscription: String,
) -> Result<(), Error> {
    let call = subscriptions.delete_subscription().set_subscription(&subscription);
    let unsubscribed =
        request(format!("remove the temporary subscription {subscription}"), call.send()).await;
    let removed = remove_topic(&topics, &topic).await;
    unsubscribed.and(removed)
}

async fn remove_topic(topics: &TopicAdmin, topic: &str) -> Result<(), Error> {
    let call = topics.delete_topic().set_topic(topic);
    request(format!("remove the temporary topic {topic}"), call.send()).await
}

async fn request<T>(
    operation: String,
    answer: impl Future<Output = google_cloud_gax::Result<T>>,
) -> Result<(), Error> {
    match tokio::time::timeout(LIMIT, answer).await {
        Ok(answer) => answer.map(drop).map_err(|error| error::classify(operation, &error)),
        Err(_) => Err(error::timeout(operation)),
    }
}
