//! Looks at topics and groups without consuming or changing anything: [`SourceFacts`], [`TopicFacts`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::Client;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use crate::client::blocking as task;
use crate::client::connectivity::reach;
use crate::client::log::Traced;
use crate::client::native::{self, Described};
use crate::config::{KafkaConfig, settled};
use crate::poll::rebalance::Users;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(5);
const BREATH: Duration = Duration::from_millis(50);

/// What the cluster tells of what a group consumes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceFacts {
    /// Offsets that are not committed yet: those in flight are among them, and so are some that hold no records.
    pub lag: u64,
    /// Partitions of all topics.
    pub partitions: u32,
    /// Members of the group.
    pub members: u32,
    /// The group's state as the broker calls it: `Stable`, `Empty`, `PreparingRebalance`; `Dead` if there is no such group.
    pub group_state: String,
    /// The longest time a record is kept; `None` if that is not limited, or the broker does not say.
    pub retention: Option<Duration>,
    /// The topics that the user may not read.
    pub unreadable: Vec<String>,
    /// How the group assigns partitions, such as `cooperative-sticky` or `range`, if it has members that agreed on it.
    pub group_protocol: Option<String>,
    /// The largest record that one of the topics takes; `None` if the broker does not say.
    pub max_message_bytes: Option<u64>,
}

/// What the cluster tells of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicFacts {
    /// The offsets from the first to the last of each partition: as many records, or a few less.
    pub records: u64,
    /// False if the user may not write to it.
    pub writable: bool,
    /// The largest record that it takes; `None` if the broker does not say.
    pub max_message_bytes: Option<u64>,
}

impl KafkaConfig {
    /// Asks the cluster about the topics and the group, by clients of its own. The group is not joined.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if values cannot be used or there is no such topic, `Denied` if the
    /// broker refuses, `Unavailable` or `Timeout` if it cannot be reached.
    pub async fn source_facts(&self) -> Result<SourceFacts, Error> {
        self.check()?;
        let (client, names, group) = (self.client(), self.topics.names.clone(), self.group.clone());
        let operation = format!("look at topic {}", names.join(", "));
        let context = Users::new(Traced);
        let trouble = Arc::clone(&context.trouble);
        let (asked, asking) = (client.clone(), names.clone());
        let look = move || {
            let asked: BaseConsumer<Users<Traced>> = client.create_with_context(context)?;
            reach(&asked, names.first().map_or("", String::as_str), ANSWER)?;
            let described = described(asked.client(), &names)?;
            let mut partitions = TopicPartitionList::new();
            for name in &names {
                let metadata = asked.fetch_metadata(Some(name), ANSWER)?;
                for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
                    partitions.add_partition(name, partition.id());
                }
            }
            let (count, lag) = lag(&asked, partitions)?;
            let groups = patiently(|| asked.fetch_group_list(Some(&group), ANSWER))?;
            let group = groups.groups().iter().find(|own| own.name() == group);
            let unreadable = described.iter().filter(|topic| topic.allowed.is_some_and(|may| !may.read));
            Ok(SourceFacts {
                lag,
                partitions: count,
                members: group.map_or(0, |group| u32::try_from(group.members().len()).unwrap_or(u32::MAX)),
                group_state: group.map_or("Dead", |group| group.state()).to_owned(),
                retention: None,
                unreadable: unreadable.map(|topic| topic.name.clone()).collect(),
                group_protocol: group.map(|group| group.protocol().to_owned()).filter(|own| !own.is_empty()),
                max_message_bytes: None,
            })
        };
        let looked = task::blocking(look).await?;
        let mut facts = looked.map_err(|error| trouble.explain(operation, error, ErrorKind::Denied))?;
        facts.retention = retention(&asked, Traced, &asking).await;
        let largest = setting(&asked, Traced, &asking, "max.message.bytes").await;
        facts.max_message_bytes = largest.and_then(|all| all.into_iter().max()?.try_into().ok());
        Ok(facts)
    }

    /// Asks the cluster about one topic, such as that of the dead letters.
    ///
    /// # Errors
    /// As [`source_facts`](Self::source_facts).
    pub async fn topic_facts(&self, topic: &str) -> Result<TopicFacts, Error> {
        self.check()?;
        let (client, name) = (self.client(), topic.to_owned());
        let (asked, asking) = (client.clone(), [topic.to_owned()]);
        let context = Users::new(Traced);
        let trouble = Arc::clone(&context.trouble);
        let look = move || {
            let asked: BaseConsumer<Users<Traced>> = client.create_with_context(context)?;
            reach(&asked, &name, ANSWER)?;
            let described = described(asked.client(), std::slice::from_ref(&name))?;
            let metadata = asked.fetch_metadata(Some(&name), ANSWER)?;
            let mut records = 0;
            for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
                let (low, high) = asked.fetch_watermarks(&name, partition.id(), ANSWER)?;
                records += u64::try_from(high - low).unwrap_or_default();
            }
            let refused = described.iter().any(|topic| topic.allowed.is_some_and(|may| !may.write));
            Ok(TopicFacts { records, writable: !refused, max_message_bytes: None })
        };
        let operation = format!("look at topic {topic}");
        let looked = task::blocking(look).await?;
        let mut facts = looked.map_err(|error| trouble.explain(operation, error, ErrorKind::Denied))?;
        let largest = setting(&asked, Traced, &asking, "max.message.bytes").await;
        facts.max_message_bytes = largest.and_then(|all| all.into_iter().max()?.try_into().ok());
        Ok(facts)
    }

    /// How this configuration has partitions assigned, as a list of strategies.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if values cannot be used.
    pub fn assignment_strategy(&self) -> Result<String, Error> {
        let client = settled(self.client(), &self.topics)?.client;
        Ok(client.get("partition.assignment.strategy").unwrap_or_default().to_owned())
    }

    /// Asks the cluster how many brokers it has, whatever its topics.
    ///
    /// # Errors
    /// As [`source_facts`](Self::source_facts).
    pub async fn brokers_up(&self) -> Result<usize, Error> {
        self.check()?;
        let client = self.client();
        let context = Users::new(Traced);
        let trouble = Arc::clone(&context.trouble);
        let look = move || {
            let asked: BaseConsumer<Users<Traced>> = client.create_with_context(context)?;
            Ok(asked.fetch_metadata(None, ANSWER)?.brokers().len())
        };
        let looked = task::blocking(look).await?;
        looked.map_err(|error| trouble.explain("look at the cluster".to_owned(), error, ErrorKind::Denied))
    }
}

fn described<C: ClientContext>(client: &Client<C>, names: &[String]) -> KafkaResult<Vec<Described>> {
    native::describe(client, &names.iter().map(String::as_str).collect::<Vec<_>>(), ANSWER)
}

/// Repeats a question to a coordinator that starts or moves: a cluster's first group waits for that.
fn patiently<T>(mut question: impl FnMut() -> KafkaResult<T>) -> KafkaResult<T> {
    let until = Instant::now() + ANSWER;
    loop {
        match question() {
            Err(error) if is_moving(&error) && Instant::now() < until => std::thread::sleep(BREATH),
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

/// How many partitions there are, and how many of their offsets the group has not committed.
fn lag(asked: &BaseConsumer<Users<Traced>>, partitions: TopicPartitionList) -> KafkaResult<(u32, u64)> {
    let (mut count, mut lag) = (0, 0);
    let committed = patiently(|| asked.committed_offsets(partitions.clone(), ANSWER))?;
    for own in committed.elements() {
        own.error()?;
        let (low, high) = asked.fetch_watermarks(own.topic(), own.partition(), ANSWER)?;
        let next = match own.offset() {
            Offset::Offset(offset) => offset.max(low),
            _ => low,
        };
        count += 1;
        lag += u64::try_from(high - next).unwrap_or_default();
    }
    Ok((count, lag))
}

/// The longest time that one of these topics keeps a record; `None` if one keeps it for ever, or the user may not know.
pub(crate) async fn retention<C: ClientContext + 'static>(
    client: &ClientConfig,
    context: C,
    names: &[String],
) -> Option<Duration> {
    let mut longest = None;
    for retention_ms in setting(client, context, names, "retention.ms").await? {
        // -1: without a limit.
        let retention = Duration::from_millis(u64::try_from(retention_ms).ok()?);
        longest = longest.max(Some(retention));
    }
    longest
}

/// A setting of each of these topics; `None` if the user may not know.
async fn setting<C: ClientContext + 'static>(
    client: &ClientConfig,
    context: C,
    names: &[String],
    setting: &str,
) -> Option<Vec<i64>> {
    let admin: AdminClient<C> = client.create_with_context(context).ok()?;
    let topic = names.first()?.clone();
    let ask = move || (native::any_broker(admin.inner(), &topic, ANSWER), admin);
    let (broker, admin) = task::blocking(ask).await.ok()?;
    let topics: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    let options = AdminOptions::new().request_timeout(Some(ANSWER)).broker_id(broker.ok()?);
    let configs = admin.describe_configs(&topics, &options).await.ok()?;
    configs.into_iter().map(|topic| topic.ok()?.get(setting)?.value.as_deref()?.parse().ok()).collect()
}
