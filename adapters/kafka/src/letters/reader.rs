//! The client that reads the partitions of a topic from given offsets: [`LetterReader`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind, Message, OwnHeaders};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::client::connectivity::wait_for_cluster;
use crate::client::context::SharedContext;
use crate::client::log::TracingContext;
use crate::client::native;
use crate::client_config::ConsumerClientConfig;
use crate::connection::KafkaConnection;
use crate::log_id::LogId;
use crate::message::to_message;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a read waits for its first record.
const POLL_TIMEOUT: Duration = Duration::from_millis(500);
/// How long reads go without a record or an end before they fail.
const SILENCE: Duration = Duration::from_secs(60);
/// The most records of one batch, and about how many bytes.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 4 * 1024 * 1024;

type Client = BaseConsumer<SharedContext<TracingContext>>;

/// The configuration of a client that reads without joining a group.
pub(super) fn client_config(connection: &KafkaConnection, group: &str) -> Result<ClientConfig, Error> {
    let mut client = connection.client();
    client.set("group.id", group);
    let mut client = ConsumerClientConfig::build(client)?.client;
    // The end of a partition is an event, since the offsets before it may be those of markers.
    client.set("enable.partition.eof", "true");
    client.set("queued.max.messages.kbytes", "16384");
    Ok(client)
}

/// The first offset of a partition and the one after its last.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogEdges {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// The records of one read.
#[derive(Default)]
pub(super) struct ReadBatch {
    /// Partition, offset and message.
    pub(super) records: Vec<(i32, u64, Message)>,
    /// Partitions that have been read to their end.
    pub(super) ended: Vec<i32>,
}

/// A client with the partitions of one topic. All calls block.
pub(super) struct LetterReader {
    client: Client,
    topic: Arc<str>,
    incarnation: Arc<str>,
    edges: Vec<(i32, LogEdges)>,
    own_headers: OwnHeaders,
}

impl LetterReader {
    /// Connects, and looks up the partitions of `topic`.
    pub(super) fn open(client: &ClientConfig, topic: &str, own_headers: OwnHeaders) -> Result<Self, Error> {
        let context = SharedContext::new(TracingContext);
        let diagnosis = Arc::clone(&context.diagnosis);
        let explain = |error| diagnosis.explain(format!("read topic {topic}"), error, ErrorKind::Denied);
        let client: Client = client.create_with_context(context).map_err(explain)?;
        wait_for_cluster(&client, topic, REQUEST_TIMEOUT).map_err(explain)?;
        let (incarnation, edges) = inspect(&client, topic).map_err(explain)?;
        Ok(Self { client, topic: topic.into(), incarnation: incarnation.into(), edges, own_headers })
    }

    pub(super) fn edges(&self) -> Vec<(i32, LogEdges)> {
        self.edges.clone()
    }

    pub(super) fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// Starts to read each partition at an offset.
    pub(super) fn assign(self, starts: &[(i32, u64)]) -> Result<Self, Error> {
        let mut list = TopicPartitionList::new();
        let mut assign = || {
            for (number, offset) in starts {
                let offset = Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX));
                list.add_partition_offset(&self.topic, *number, offset)?;
            }
            self.client.assign(&list)
        };
        assign().map_err(|error| self.explain(error))?;
        Ok(self)
    }

    /// The next records; empty after [`POLL_TIMEOUT`].
    pub(super) fn read(&self) -> Result<ReadBatch, Error> {
        let (mut batch, mut bytes, began) = (ReadBatch::default(), 0, Instant::now());
        while batch.records.len() < BATCH && bytes < BATCH_BYTES {
            let is_first = batch.records.is_empty() && batch.ended.is_empty();
            match self.client.poll(if is_first { POLL_TIMEOUT } else { Duration::ZERO }) {
                Some(Ok(record)) => {
                    let (message, _) =
                        to_message(&record, &self.topic, &self.incarnation, None, &self.own_headers);
                    bytes += record.payload_len();
                    let offset = u64::try_from(record.offset()).unwrap_or_default();
                    batch.records.push((record.partition(), offset, message));
                }
                Some(Err(KafkaError::PartitionEOF(number))) => batch.ended.push(number),
                // The client repeats what failed for a while; its errors are logged.
                Some(Err(error)) if is_passing(&error) && began.elapsed() < SILENCE => {}
                Some(Err(error)) => return Err(self.explain(error)),
                None if !is_first => break,
                None if began.elapsed() < SILENCE => {}
                None => {
                    let what = format!("no record within {SILENCE:?}; check whether the brokers are up");
                    return Err(Error::new(ErrorKind::Timeout, format!("read topic {}", self.topic), what));
                }
            }
        }
        Ok(batch)
    }

    fn explain(&self, error: KafkaError) -> Error {
        let operation = format!("read topic {}", self.topic);
        self.client.context().diagnosis.explain(operation, error, ErrorKind::Denied)
    }
}

fn is_passing(error: &KafkaError) -> bool {
    crate::error::classify("read a topic", error.clone()).is_retryable()
}

/// The topic's incarnation, and the edges of each partition.
fn inspect(client: &Client, topic: &str) -> KafkaResult<(String, Vec<(i32, LogEdges)>)> {
    let described = native::describe_topics(client.client(), &[topic], REQUEST_TIMEOUT)?;
    let topic_id = described.into_iter().next().and_then(|topic| topic.id);
    let cluster = client.client().fetch_cluster_id(REQUEST_TIMEOUT).unwrap_or_default();
    let metadata = client.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
    let mut edges = Vec::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        let (start, end) = client.fetch_watermarks(topic, partition.id(), REQUEST_TIMEOUT)?;
        let offset = |edge| u64::try_from(edge).unwrap_or_default();
        edges.push((partition.id(), LogEdges { start: offset(start), end: offset(end) }));
    }
    Ok((LogId { topic_id, truncations: 0 }.incarnation(&cluster, topic), edges))
}
