//! Inspects subscriptions without changing anything: [`PubsubSubscriptionStatus`].

use std::fmt;
use std::time::Duration;

use google_cloud_gax::options::RequestOptionsBuilder;
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_pubsub::model::Subscription;
use google_cloud_pubsub::model::subscription::State;
use onceward::adapter::Capabilities;
use onceward::{Error, ErrorKind};

use crate::config::PubsubSubscriptionConfig;
use crate::connection::endpoint::PubsubEndpoint;
use crate::error;

/// How long a read may take.
const READ_LIMIT: Duration = Duration::from_secs(4);
/// What is wrong with `ordered` on a subscription without message ordering.
pub(crate) const NOT_ORDERED: &str = "ordered is set, but the subscription has no message ordering, and that cannot be changed; \
                                      create it with message ordering, or remove ordered";
/// The topic name of a subscription whose topic was deleted.
const DELETED_TOPIC: &str = "_deleted-topic_";

/// The attributes of a subscription. The number of waiting messages is not among them: Pub/Sub does not report it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PubsubSubscriptionStatus {
    /// The topic's full name; `None` if the topic was deleted or the attributes are unknown.
    pub topic: Option<String>,
    /// Message ordering is enabled.
    pub ordered: bool,
    /// Exactly-once delivery is enabled.
    pub exactly_once: bool,
    /// The subscription delivers by pull: not to an endpoint, BigQuery or Cloud Storage.
    pub pull: bool,
    /// The subscription can deliver: it is not detached, and active.
    pub active: bool,
    /// The subscription's default ack deadline; the consumer uses that of its configuration.
    pub ack_deadline: Option<Duration>,
    /// How long an unacked message is kept.
    pub retention: Option<Duration>,
    /// Acked messages are kept as well, so that a seek delivers them again.
    pub retains_acked: bool,
    /// The shortest and longest delay of the retry policy. Without one a returned message is redelivered at once.
    pub retry_delay: Option<(Duration, Duration)>,
    /// The dead-letter policy moves a message away after this many deliveries.
    pub max_delivery_attempts: Option<u32>,
    /// The dead-letter policy's topic.
    pub dead_letter_topic: Option<String>,
    /// The filter that messages must pass; empty without one.
    pub filter: String,
    /// The attributes could be read.
    pub(crate) is_known: bool,
}

impl PubsubSubscriptionStatus {
    /// Queries Pub/Sub over its REST interface, with a timeout of 4 s. `name` is the full name.
    ///
    /// # Errors
    /// `Config` if the subscription does not exist, `Denied` without the permission `pubsub.subscriptions.get`, `Unavailable`,
    /// `Throttled` or `Timeout` if Pub/Sub does not respond.
    pub async fn read(endpoint: &PubsubEndpoint, name: &str) -> Result<Self, Error> {
        let client = endpoint.subscription_admin().await?;
        let call = retrying(endpoint, client.get_subscription().set_subscription(name));
        read(format!("read the attributes of {name}"), call.send()).await.map(Self::of)
    }

    /// As [`read`](Self::read), but unknown without the permission, or if an endpoint other than Google's does not offer
    /// it.
    pub(crate) async fn read_if_offered(endpoint: &PubsubEndpoint, name: &str) -> Result<Self, Error> {
        match Self::read(endpoint, name).await {
            Err(error) if error.kind() == ErrorKind::Denied && endpoint.is_google() => {
                tracing::warn!(?error, "attributes of the subscription not readable; they are not checked");
                Ok(Self::default())
            }
            Err(error) if !endpoint.is_google() && error.kind() != ErrorKind::Config => {
                tracing::info!(
                    ?error,
                    "the endpoint does not report the attributes of the subscription; they are not checked"
                );
                Ok(Self::default())
            }
            read => read,
        }
    }

    fn of(answer: Subscription) -> Self {
        let duration = |of: google_cloud_wkt::Duration| {
            Duration::new(u64::try_from(of.seconds()).unwrap_or(0), u32::try_from(of.nanos()).unwrap_or(0))
        };
        let seconds = u64::try_from(answer.ack_deadline_seconds).unwrap_or(0);
        let is_pull = answer.push_config.as_ref().is_none_or(|push| push.push_endpoint.is_empty())
            && answer.bigquery_config.is_none()
            && answer.cloud_storage_config.is_none();
        let policy = answer.dead_letter_policy;
        Self {
            is_known: true,
            topic: Some(answer.topic).filter(|topic| !topic.is_empty() && topic != DELETED_TOPIC),
            ordered: answer.enable_message_ordering,
            exactly_once: answer.enable_exactly_once_delivery,
            pull: is_pull,
            active: !answer.detached && answer.state != State::ResourceError,
            ack_deadline: (seconds > 0).then(|| Duration::from_secs(seconds)),
            retention: answer.message_retention_duration.map(duration),
            retains_acked: answer.retain_acked_messages,
            retry_delay: answer.retry_policy.map(|policy| {
                (
                    policy.minimum_backoff.map_or(Duration::from_secs(10), duration),
                    policy.maximum_backoff.map_or(Duration::from_secs(600), duration),
                )
            }),
            max_delivery_attempts: policy.as_ref().map(|policy| {
                u32::try_from(policy.max_delivery_attempts).ok().filter(|most| *most > 0).unwrap_or(5)
            }),
            dead_letter_topic: policy
                .map(|policy| policy.dead_letter_topic)
                .filter(|topic| !topic.is_empty()),
            filter: answer.filter,
        }
    }

    /// Refuses a configuration that promises an order which the subscription does not keep.
    pub(crate) fn check_order(&self, ordered: bool) -> Result<(), Error> {
        if ordered && self.is_known && !self.ordered {
            return Err(error::config("consume a Pub/Sub subscription", NOT_ORDERED));
        }
        Ok(())
    }

    /// True if the attributes could be read.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// The capabilities of a consumer of this subscription with this configuration.
    pub fn capabilities(&self, subscription: &PubsubSubscriptionConfig) -> Capabilities {
        let mut capabilities = Capabilities::default();
        // Held in place: the client library cannot return a message with a delay, and a returned one would be
        // overtaken by the rest of its ordering key, or be redelivered together with it.
        capabilities.delayed_retry = false;
        // The client library extends.
        capabilities.heartbeat = None;
        // Pub/Sub does not report how many messages wait.
        capabilities.reports_idle = false;
        capabilities.ordered = subscription.ordered;
        capabilities.delivery_limit = self.max_delivery_attempts;
        capabilities.retention = self.retention;
        capabilities
    }
}

/// The client library's retries are for Google's endpoint: another one may not offer the interface at all.
fn retrying<C: RequestOptionsBuilder>(endpoint: &PubsubEndpoint, call: C) -> C {
    if endpoint.is_google() { call } else { call.with_retry_policy(NeverRetry) }
}

/// Waits for the answer to a read, at most [`READ_LIMIT`].
async fn read<T>(
    operation: String,
    answer: impl Future<Output = google_cloud_gax::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(READ_LIMIT, answer).await {
        Ok(answer) => answer.map_err(|error| error::classify(operation, &error)),
        Err(_) => Err(error::timeout(operation)),
    }
}

/// Checks that a topic exists. Accepts it if that cannot be read, since publishing needs no permission to read the topic.
///
/// # Errors
/// `Config` if it does not exist, `Unavailable`, `Throttled` or `Timeout` if Google does not respond.
#[cfg(feature = "plugin")]
pub(crate) async fn check_topic(endpoint: &PubsubEndpoint, name: &str) -> Result<(), Error> {
    let client = endpoint.topic_admin().await?;
    let call = retrying(endpoint, client.get_topic().set_topic(name));
    match read(format!("read the attributes of {name}"), call.send()).await.map(drop) {
        Err(error) if error.kind() == ErrorKind::Denied => Ok(()),
        Err(error) if !endpoint.is_google() && error.kind() != ErrorKind::Config => Ok(()),
        answer => answer,
    }
}

/// A permission on a subscription or a topic, and a role that has it.
#[cfg(feature = "plugin")]
#[derive(Clone, Copy)]
pub(crate) struct Permission {
    pub(crate) name: &'static str,
    pub(crate) role: &'static str,
}

#[cfg(feature = "plugin")]
impl Permission {
    /// To receive from a subscription, and to ack.
    pub(crate) const CONSUME: Self =
        Self { name: "pubsub.subscriptions.consume", role: "roles/pubsub.subscriber" };
    /// To publish to a topic.
    pub(crate) const PUBLISH: Self = Self { name: "pubsub.topics.publish", role: "roles/pubsub.publisher" };

    /// True if it is missing on a resource, which is given by its full name; false if an emulator does not report that.
    ///
    /// # Errors
    /// `Unavailable`, `Throttled` or `Timeout` if Google does not respond.
    pub(crate) async fn is_missing(self, endpoint: &PubsubEndpoint, resource: &str) -> Result<bool, Error> {
        let client = endpoint.permissions().await?;
        let call = client.test_iam_permissions().set_resource(resource).set_permissions([self.name]);
        match read(format!("read the permissions on {resource}"), retrying(endpoint, call).send()).await {
            Ok(answer) => Ok(!answer.permissions.iter().any(|own| own == self.name)),
            Err(_) if !endpoint.is_google() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The attributes in one line.
impl fmt::Display for PubsubSubscriptionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_known {
            return f.write_str("a subscription whose attributes are unknown");
        }
        f.write_str(match (self.ordered, self.exactly_once) {
            (true, true) => "an ordered subscription with exactly-once delivery",
            (true, false) => "an ordered subscription",
            (false, true) => "a subscription with exactly-once delivery",
            (false, false) => "a subscription",
        })?;
        if let Some(retention) = self.retention {
            write!(f, " that keeps messages for {} s", retention.as_secs())?;
        }
        match (self.max_delivery_attempts, &self.dead_letter_topic) {
            (Some(most), Some(topic)) => write!(f, "; after {most} deliveries they are moved to {topic}"),
            (Some(most), None) => write!(f, "; after {most} deliveries they are moved away"),
            (None, _) => f.write_str(", without a dead-letter policy"),
        }
    }
}
