//! A temporary topic beside those of the source: [`create`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind, Publisher};
use onceward_plugin::{SourcePlugin, TemporarySource};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication, TopicResult};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};

use crate::client::log::TracingContext;
use crate::connection::KafkaConnection;
use crate::error;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a group may still have the member that has just left it.
const GROUP_LEFT: Duration = Duration::from_secs(10);
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// The longest name of a topic.
const LONGEST_NAME: usize = 249;

/// A topic to be created, and the group that reads it.
pub(super) struct TemporaryTopic<'a> {
    /// The topic whose partitions and replicas it has.
    pub(super) beside: &'a str,
    pub(super) name: String,
    pub(super) group: String,
}

/// Creates a topic. `table` names it and its group.
pub(super) async fn create(
    connection: KafkaConnection,
    publisher: Arc<dyn Publisher>,
    topic: TemporaryTopic<'_>,
    table: Box<dyn SourcePlugin>,
) -> Result<TemporarySource, Error> {
    let TemporaryTopic { beside, name, group } = topic;
    let operation = format!("create the temporary topic {name}");
    if name.len() > LONGEST_NAME {
        let what = format!("its name would be longer than {LONGEST_NAME} characters");
        return Err(Error::new(ErrorKind::Config, operation, what));
    }
    let shape = connection.topic_shape(beside).await?;
    let wanted = NewTopic::new(&name, shape.partitions, TopicReplication::Fixed(shape.replicas));
    let created = admin(&connection, &operation)?.create_topics([&wanted], &options()).await;
    first(created).map_err(|error| error::classify(operation, error))?;

    let place = format!("topic {name} ({} partitions), group {group}", shape.partitions);
    let removal = remove(connection, name.clone(), group);
    Ok(TemporarySource::new(place, table, publisher, name, removal))
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
fn first(outcome: KafkaResult<Vec<TopicResult>>) -> KafkaResult<()> {
    match outcome?.into_iter().next() {
        Some(Err((_, code))) => Err(KafkaError::AdminOp(code)),
        _ => Ok(()),
    }
}
