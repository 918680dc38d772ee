//! Inspects topics and groups without consuming or changing anything: [`GroupStatus`], [`TopicStatus`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::Client;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use crate::client::blocking::run_blocking;
use crate::client::connectivity::wait_for_cluster;
use crate::client::context::SharedContext;
use crate::client::log::TracingContext;
use crate::client::native::{self, TopicDescription};
use crate::client_config::ConsumerClientConfig;
use crate::config::KafkaConfig;
use crate::connection::KafkaConnection;

/// The timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// The status of a group and the topics that it consumes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStatus {
    /// The number of offsets that are not committed. It includes records in flight, and offsets without records.
    pub lag: u64,
    /// The number of partitions of all topics.
    pub partitions: u32,
    /// The number of members of the group.
    pub members: u32,
    /// The group's state as the broker names it, such as `Stable`, `Empty` or `PreparingRebalance`; `Dead` if the group does not
    /// exist.
    pub group_state: String,
    /// The longest retention of the topics; `None` if it is unlimited, or not reported.
    pub retention: Option<Duration>,
    /// The topics that the user may not read.
    pub unreadable: Vec<String>,
    /// The group's assignment strategy, such as `cooperative-sticky` or `range`; `None` without members that agreed on one.
    pub group_protocol: Option<String>,
    /// The largest record that one of the topics accepts; `None` if not reported.
    pub max_message_bytes: Option<u64>,
}

/// The status of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicStatus {
    /// The number of offsets between the first and the last of each partition: at least the number of records.
    pub records: u64,
    /// False if the user may not write to it.
    pub writable: bool,
    /// The largest record that it accepts; `None` if not reported.
    pub max_message_bytes: Option<u64>,
}

/// The numbers with which a topic was created.
#[cfg(feature = "plugin")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TopicShape {
    /// The number of partitions.
    pub(crate) partitions: i32,
    /// The number of replicas of a partition.
    pub(crate) replicas: i32,
}

type InspectionClient = BaseConsumer<SharedContext<TracingContext>>;

impl KafkaConfig {
    /// Inspects the topics and the group. The group is not joined.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if a value is invalid or a topic does not exist, `Denied` if access is
    /// denied, `Unavailable` or `Timeout` if the cluster is unreachable.
    pub async fn inspect_group(&self) -> Result<GroupStatus, Error> {
        self.check()?;
        let (names, group) = (self.topics.names.clone(), self.group.clone());
        let operation = format!("inspect topic {}", names.join(", "));
        let inspected = names.clone();
        let mut status =
            inspect(self.client(), operation, move |client| group_status(client, &inspected, &group)).await?;
        let client = self.client();
        status.retention = max_retention(&client, TracingContext, &names).await;
        status.max_message_bytes = max_message_bytes(&client, &names).await;
        Ok(status)
    }

    /// Returns the assignment strategies of this configuration, separated by commas.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if a value is invalid.
    pub fn assignment_strategy(&self) -> Result<String, Error> {
        self.topics.check()?;
        let client = ConsumerClientConfig::build(self.client())?.client;
        Ok(client.get("partition.assignment.strategy").unwrap_or_default().to_owned())
    }
}

impl KafkaConnection {
    /// Inspects a topic, such as that of the dead letters.
    ///
    /// # Errors
    /// As [`KafkaConfig::inspect_group`].
    pub async fn inspect_topic(&self, topic: &str) -> Result<TopicStatus, Error> {
        self.check()?;
        let name = topic.to_owned();
        let operation = format!("inspect topic {topic}");
        let mut status = inspect(self.client(), operation, move |client| topic_status(client, &name)).await?;
        status.max_message_bytes = max_message_bytes(&self.client(), &[topic.to_owned()]).await;
        Ok(status)
    }

    /// Returns the number of partitions of a topic, and of the replicas of each.
    ///
    /// # Errors
    /// As [`KafkaConfig::inspect_group`].
    #[cfg(feature = "plugin")]
    pub(crate) async fn topic_shape(&self, topic: &str) -> Result<TopicShape, Error> {
        self.check()?;
        let name = topic.to_owned();
        let shape = move |client: &InspectionClient| {
            wait_for_cluster(client, &name, REQUEST_TIMEOUT)?;
            describe_topics(client.client(), std::slice::from_ref(&name))?;
            let metadata = client.fetch_metadata(Some(&name), REQUEST_TIMEOUT)?;
            let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
            let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
            let replicas = partitions.first().map_or(1, |partition| partition.replicas().len());
            Ok(TopicShape { partitions: number(partitions.len()).max(1), replicas: number(replicas).max(1) })
        };
        inspect(self.client(), format!("inspect topic {topic}"), shape).await
    }

    /// Returns the number of brokers in the cluster.
    ///
    /// # Errors
    /// As [`KafkaConfig::inspect_group`].
    pub async fn count_brokers(&self) -> Result<usize, Error> {
        self.check()?;
        let count =
            |client: &InspectionClient| Ok(client.fetch_metadata(None, REQUEST_TIMEOUT)?.brokers().len());
        inspect(self.client(), "inspect the cluster".to_owned(), count).await
    }
}

/// Runs `requests` on a client of its own, on a blocking thread.
async fn inspect<T: Send + 'static>(
    client: ClientConfig,
    operation: String,
    requests: impl FnOnce(&InspectionClient) -> KafkaResult<T> + Send + 'static,
) -> Result<T, Error> {
    let context = SharedContext::new(TracingContext);
    let diagnosis = Arc::clone(&context.diagnosis);
    let run = move || requests(&client.create_with_context(context)?);
    run_blocking(run).await?.map_err(|error| diagnosis.explain(operation, error, ErrorKind::Denied))
}

fn group_status(client: &InspectionClient, names: &[String], group: &str) -> KafkaResult<GroupStatus> {
    wait_for_cluster(client, names.first().map_or("", String::as_str), REQUEST_TIMEOUT)?;
    let described = describe_topics(client.client(), names)?;
    let mut partitions = TopicPartitionList::new();
    for name in names {
        let metadata = client.fetch_metadata(Some(name), REQUEST_TIMEOUT)?;
        for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
            partitions.add_partition(name, partition.id());
        }
    }
    let (count, lag) = count_lag(client, partitions)?;
    let groups = retry_while_moving(|| client.fetch_group_list(Some(group), REQUEST_TIMEOUT))?;
    let group = groups.groups().iter().find(|own| own.name() == group);
    let unreadable = described.iter().filter(|topic| topic.allowed.is_some_and(|may| !may.read));
    Ok(GroupStatus {
        lag,
        partitions: count,
        members: group.map_or(0, |group| u32::try_from(group.members().len()).unwrap_or(u32::MAX)),
        group_state: group.map_or("Dead", |group| group.state()).to_owned(),
        retention: None,
        unreadable: unreadable.map(|topic| topic.name.clone()).collect(),
        group_protocol: group.map(|group| group.protocol().to_owned()).filter(|own| !own.is_empty()),
        max_message_bytes: None,
    })
}

fn topic_status(client: &InspectionClient, name: &str) -> KafkaResult<TopicStatus> {
    wait_for_cluster(client, name, REQUEST_TIMEOUT)?;
    let described = describe_topics(client.client(), &[name.to_owned()])?;
    let metadata = client.fetch_metadata(Some(name), REQUEST_TIMEOUT)?;
    let mut records = 0;
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        let (low, high) = client.fetch_watermarks(name, partition.id(), REQUEST_TIMEOUT)?;
        records += u64::try_from(high - low).unwrap_or_default();
    }
    let is_denied = described.iter().any(|topic| topic.allowed.is_some_and(|may| !may.write));
    Ok(TopicStatus { records, writable: !is_denied, max_message_bytes: None })
}

fn describe_topics<C: ClientContext>(
    client: &Client<C>,
    names: &[String],
) -> KafkaResult<Vec<TopicDescription>> {
    native::describe_topics(client, &names.iter().map(String::as_str).collect::<Vec<_>>(), REQUEST_TIMEOUT)
}

/// Retries a request while the group coordinator is starting or moving, as it does for a cluster's first group.
fn retry_while_moving<T>(mut request: impl FnMut() -> KafkaResult<T>) -> KafkaResult<T> {
    let until = Instant::now() + REQUEST_TIMEOUT;
    loop {
        match request() {
            Err(error) if is_moving(&error) && Instant::now() < until => std::thread::sleep(RETRY_DELAY),
            answered => return answered,
        }
    }
}

fn is_moving(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress)
    )
}

/// Counts the partitions, and their offsets that the group has not committed.
fn count_lag(client: &InspectionClient, partitions: TopicPartitionList) -> KafkaResult<(u32, u64)> {
    let (mut count, mut lag) = (0, 0);
    let committed = retry_while_moving(|| client.committed_offsets(partitions.clone(), REQUEST_TIMEOUT))?;
    for own in committed.elements() {
        own.error()?;
        let (low, high) = client.fetch_watermarks(own.topic(), own.partition(), REQUEST_TIMEOUT)?;
        let next = match own.offset() {
            Offset::Offset(offset) => offset.max(low),
            _ => low,
        };
        count += 1;
        lag += u64::try_from(high - next).unwrap_or_default();
    }
    Ok((count, lag))
}

/// Returns the longest retention of the topics; `None` if one is unlimited, or the user may not read it.
pub(crate) async fn max_retention<C: ClientContext + 'static>(
    client: &ClientConfig,
    context: C,
    names: &[String],
) -> Option<Duration> {
    let mut longest = None;
    for retention_ms in topic_settings(client, context, names, "retention.ms").await? {
        // -1 means unlimited.
        let retention = Duration::from_millis(u64::try_from(retention_ms).ok()?);
        longest = longest.max(Some(retention));
    }
    longest
}

/// Returns the largest record that one of the topics accepts.
async fn max_message_bytes(client: &ClientConfig, names: &[String]) -> Option<u64> {
    let settings = topic_settings(client, TracingContext, names, "max.message.bytes").await?;
    settings.into_iter().max()?.try_into().ok()
}

/// Returns a setting of each topic; `None` if the user may not read it.
async fn topic_settings<C: ClientContext + 'static>(
    client: &ClientConfig,
    context: C,
    names: &[String],
    setting: &str,
) -> Option<Vec<i64>> {
    let admin: AdminClient<C> = client.create_with_context(context).ok()?;
    let topic = names.first()?.clone();
    let find_broker = move || (native::any_broker(admin.inner(), &topic, REQUEST_TIMEOUT), admin);
    let (broker, admin) = run_blocking(find_broker).await.ok()?;
    let topics: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).broker_id(broker.ok()?);
    let configs = admin.describe_configs(&topics, &options).await.ok()?;
    configs.into_iter().map(|topic| topic.ok()?.get(setting)?.value.as_deref()?.parse().ok()).collect()
}
