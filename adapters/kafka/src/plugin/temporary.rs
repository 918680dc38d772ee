//! A temporary topic beside those of the source: [`create`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind};
use onceward_plugin::{Context, TemporarySource};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::source::KafkaSource;
use crate::client::log::TracingContext;
use crate::connection::KafkaConnection;
use crate::error;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a group may still have the member that has just left it.
const GROUP_LEFT: Duration = Duration::from_secs(10);
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// The longest name of a topic.
const LONGEST_NAME: usize = 249;

/// Creates a topic with the partitions and replicas of the source's first one, named as that with `suffix` behind it. It is
/// consumed as a group named in the same way, from its beginning.
pub(super) async fn create(
    source: &KafkaSource,
    context: &Context<'_>,
    suffix: &str,
) -> Result<TemporarySource, Error> {
    let original = source.topics.first().map_or("", String::as_str);
    let (topic, group) = (format!("{original}.{suffix}"), format!("{}.{suffix}", source.group));
    let operation = format!("create the temporary topic {topic}");
    if topic.len() > LONGEST_NAME {
        let what = format!("its name would be longer than {LONGEST_NAME} characters");
        return Err(Error::new(ErrorKind::Config, operation, what));
    }
    let connection = source.admin_options(context)?.connection;
    let publisher = source.open_publisher(context)?;
    let shape = connection.topic_shape(original).await?;
    let wanted = NewTopic::new(&topic, shape.partitions, TopicReplication::Fixed(shape.replicas));
    let created = admin(&connection, &operation)?.create_topics([&wanted], &options()).await;
    first(created).map_err(|error| error::classify(operation, error))?;

    let table = KafkaSource {
        topics: vec![topic.clone()],
        group: group.clone(),
        retry_topics: BTreeMap::new(),
        // A new group would skip what was published before it has joined.
        properties: source.properties.without("auto.offset.reset"),
        ..source.clone()
    };
    let place = format!("topic {topic} ({} partitions), group {group}", shape.partitions);
    let removal = remove(connection, topic.clone(), group);
    Ok(TemporarySource::new(place, Box::new(table), publisher, topic, removal))
}

async fn remove(connection: KafkaConnection, topic: String, group: String) -> Result<(), Error> {
    let operation = format!("remove the temporary topic {topic}");
    let admin = admin(&connection, &operation)?;
    let removed = first(admin.delete_topics(&[&topic], &options()).await);
    let until = Instant::now() + GROUP_LEFT;
    let left = loop {
        let left = match admin.delete_groups(&[&group], &options()).await {
            Ok(groups) => groups.into_iter().find_map(Result::err).map_or(Ok(()), |(_, code)| Err(code)),
            Err(error) => Err(error.rdkafka_error_code().unwrap_or(Code::Unknown)),
        };
        match left {
            Err(Code::NonEmptyGroup) if Instant::now() < until => tokio::time::sleep(RETRY_DELAY).await,
            left => break left,
        }
    };
    removed.map_err(|error| error::classify(operation, error))?;
    match left {
        // No consumer has joined it.
        Ok(()) | Err(Code::GroupIdNotFound) => Ok(()),
        Err(code) => {
            let operation = format!("remove the temporary group {group}");
            Err(error::classify(operation, KafkaError::AdminOp(code)))
        }
    }
}

fn admin(connection: &KafkaConnection, operation: &str) -> Result<AdminClient<TracingContext>, Error> {
    let client: ClientConfig = connection.client();
    client.create_with_context(TracingContext).map_err(|error| error::classify(operation.to_owned(), error))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(REQUEST_TIMEOUT))
}

/// The outcome of an operation on one topic.
fn first(outcome: Result<Vec<Result<String, (String, Code)>>, KafkaError>) -> Result<(), KafkaError> {
    match outcome?.into_iter().next() {
        Some(Err((_, code))) => Err(KafkaError::AdminOp(code)),
        _ => Ok(()),
    }
}
