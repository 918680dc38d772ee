//! A temporary topic and subscription beside the source's: [`create`].

use std::time::Duration;

use google_cloud_pubsub::client::{SubscriptionAdmin, TopicAdmin};
use onceward::Error;
use onceward_plugin::{Context, TemporarySource};

use super::source::PubsubSource;
use crate::PubsubSubscriptionStatus;
use crate::connection::names::Collection;
use crate::error;

/// The timeout of a request.
const LIMIT: Duration = Duration::from_secs(10);

/// Creates a topic, and a subscription of it with the order and the delivery of the source's, both named as that with `suffix` behind
/// it.
pub(super) async fn create(
    source: &PubsubSource,
    context: &Context<'_>,
    suffix: &str,
) -> Result<TemporarySource, Error> {
    let endpoint = source.endpoint(context);
    let original = source.full_subscription()?;
    let status = PubsubSubscriptionStatus::read_if_offered(&endpoint, &original).await?;
    let subscription = format!("{original}.{suffix}");
    let (parent, name) = subscription.rsplit_once('/').unwrap_or_default();
    let topic =
        format!("{}/{name}", parent.replace(Collection::Subscriptions.word(), Collection::Topics.word()));
    let publisher = source.open_publisher(context).await?;
    let (topics, subscriptions) = (endpoint.topic_admin().await?, endpoint.subscription_admin().await?);

    request(format!("create the temporary topic {topic}"), topics.create_topic().set_name(&topic).send())
        .await?;
    let wanted = subscriptions
        .create_subscription()
        .set_name(&subscription)
        .set_topic(&topic)
        .set_ack_deadline_seconds(i32::try_from(source.ack_deadline.get().as_secs()).unwrap_or(i32::MAX))
        .set_enable_message_ordering(source.ordered)
        .set_enable_exactly_once_delivery(status.exactly_once);
    let created = request(format!("create the temporary subscription {subscription}"), wanted.send()).await;
    if let Err(error) = created {
        remove_topic(&topics, &topic).await?;
        return Err(error);
    }

    let table =
        PubsubSource { subscription: subscription.clone(), topic: Some(topic.clone()), ..source.clone() };
    let place = format!("topic {topic}, subscription {subscription}");
    let removal = remove(topics, subscriptions, topic.clone(), subscription);
    Ok(TemporarySource::new(place, Box::new(table), publisher, topic, removal))
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
