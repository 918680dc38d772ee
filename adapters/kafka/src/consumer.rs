//! Consumes the records of topics as a member of a consumer group: [`KafkaConsumer`].

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use onceward::adapter::{Acker, Capabilities, Consumer, Delivery, FlowControl, Notice};
use onceward::telemetry::SourceHealth;
use onceward::{Error, ErrorKind, HeaderTrust};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tokio::sync::mpsc;

use crate::acker::KafkaAcker;
use crate::auth::password::PasswordFile;
use crate::client::blocking::run_blocking;
use crate::client::connectivity::wait_for_cluster;
use crate::client::context::SharedContext;
use crate::client::log::TracingContext;
use crate::client::native;
use crate::client_config::ConsumerClientConfig;
use crate::config::{KafkaConfig, TopicConfig};
use crate::error;
use crate::flow::PartitionFlow;
use crate::handle::Handle;
use crate::inspect;
use crate::monitor::spawn_monitor;
use crate::poll::thread::PollThread;
use crate::publisher::KafkaPublisher;
use crate::retry::forwarder::RetryForwarder;
use crate::start_offsets::StoredPositions;

/// The timeout of one request when a consumer is opened.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long leaving the group may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long `close` waits for the confirmation of copies in retry topics before that.
const COPIES_TIMEOUT: Duration = Duration::from_secs(3);

/// Consumes the records of topics as a member of a consumer group.
///
/// It reconnects by itself after an outage of a broker, and continues after rebalances. For each partition the offset of the first
/// unsettled record is committed, so that a crash redelivers unsettled records and those settled after them; the store recognises
/// the latter.
///
/// The incarnation of a position consists of the ids of the cluster and the topic: records of a topic that was deleted and created
/// again under the same name are new ones. (Brokers older than 2.8 have no topic ids; there it is the topic's name.) A topic that is
/// recreated or truncated, whether or not a consumer is running, is read from its start: the topic's id is stored with each committed
/// offset. [`health`](Consumer::health) counts such resets, and the records that retention deleted before they were read.
pub struct KafkaConsumer {
    pub(crate) handle: Arc<Handle>,
    retention: Option<Duration>,
    forwarder: Option<Arc<RetryForwarder>>,
}

impl KafkaConsumer {
    /// Connects, checks the topics and joins the group.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if a value is invalid or a topic does not exist, [`ErrorKind::Denied`] if access is denied,
    /// [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] if the cluster is unreachable.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the group in the background.
    pub async fn open(config: KafkaConfig) -> Result<Self, Error> {
        Self::open_from(config, None).await
    }

    /// Opens a consumer whose partitions start at `stored` positions.
    #[doc(hidden)]
    pub async fn open_with_positions(
        config: KafkaConfig,
        stored: Arc<dyn StoredPositions>,
    ) -> Result<Self, Error> {
        Self::open_from(config, Some(stored)).await
    }

    async fn open_from(config: KafkaConfig, stored: Option<Arc<dyn StoredPositions>>) -> Result<Self, Error> {
        config.check()?;
        let password = config.connection.password();
        Self::build(config.client(), TracingContext, config.topics, stored, password).await
    }

    /// Opens a consumer with the user's own client configuration and context. The context's logs, statistics, errors and OAuth
    /// tokens are used; rebalances are handled by this consumer. Properties that contradict the guarantees are rejected.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    ///
    /// # Cancel safety
    /// As [`open`](Self::open).
    pub async fn from_client<C: ClientContext + 'static>(
        client: ClientConfig,
        context: C,
        topics: TopicConfig,
    ) -> Result<Self, Error> {
        Self::build(client, context, topics, None, None).await
    }

    async fn build<C: ClientContext + 'static>(
        client: ClientConfig,
        context: C,
        topics: TopicConfig,
        stored: Option<Arc<dyn StoredPositions>>,
        password: Option<Arc<PasswordFile>>,
    ) -> Result<Self, Error> {
        topics.check()?;
        let built = ConsumerClientConfig::build(client)?;
        let client = built.client.clone();
        let topics = topics.limit_drain(&client);
        let context = SharedContext::new(context).with_password(password.clone());
        let forwarder = match topics.retry_topics.is_empty() {
            true => None,
            false => {
                let publisher = KafkaPublisher::build(client.clone(), password)?;
                Some(Arc::new(RetryForwarder::new(publisher, &topics)))
            }
        };
        let (shared, names) = (context.clone(), topics.names.clone());
        let handle = run_blocking(move || start(built, context, topics, stored)).await??;
        // From here on, dropping this future leaves the group.
        let mut consumer = Self { handle, retention: None, forwarder };
        consumer.retention = inspect::max_retention(&client, shared, &names).await;
        Ok(consumer)
    }

    /// Returns the number of partitions that are assigned to this member.
    #[must_use]
    pub fn assigned_partitions(&self) -> usize {
        self.handle.with(|state| state.partitions.len())
    }

    /// Returns true if the partition is being revoked, or no longer assigned: nothing more of this assignment should be started.
    #[doc(hidden)]
    #[must_use]
    pub fn is_leaving(&self, epoch: u64) -> bool {
        self.handle.with(|state| state.is_leaving(epoch))
    }
}

impl fmt::Debug for KafkaConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let topics = &self.handle.topics.names;
        f.debug_struct("KafkaConsumer").field("topics", topics).finish_non_exhaustive()
    }
}

/// Checks the cluster and the topics by a client without a group, then joins the group and starts the threads.
fn start<C: ClientContext + 'static>(
    built: ConsumerClientConfig,
    context: SharedContext<C>,
    topics: TopicConfig,
    stored: Option<Arc<dyn StoredPositions>>,
) -> Result<Arc<Handle>, Error> {
    let ConsumerClientConfig { client, from_end } = built;
    let operation = format!("consume topic {}", topics.names.join(", "));
    let mut without_group = client.clone();
    without_group.remove("group.id");
    without_group.remove("group.instance.id");
    let cluster = check_topics(&without_group, &context, &topics, &operation)?;
    let no_thread = |error| {
        Error::new(ErrorKind::Unavailable, "start a Kafka consumer", "starting a thread failed")
            .with_source(error)
    };
    let handle = Handle::new(topics, cluster);
    PollThread::new(client, context.clone(), from_end, stored, Arc::clone(&handle)).spawn(no_thread)?;
    spawn_monitor(without_group, context, Arc::clone(&handle)).map_err(|error| {
        handle.stop();
        no_thread(error)
    })?;
    Ok(handle)
}

/// Checks that the topics exist. Returns the cluster's id.
fn check_topics<C: ClientContext>(
    client: &ClientConfig,
    context: &SharedContext<C>,
    topics: &TopicConfig,
    operation: &str,
) -> Result<Arc<str>, Error> {
    let client: BaseConsumer<SharedContext<C>> = client
        .create_with_context(context.clone())
        .map_err(|error| error::classify(operation.to_owned(), error))?;
    let explained = |operation, error| context.diagnosis.explain(operation, error, ErrorKind::Denied);
    let first = topics.names.first().map_or("", String::as_str);
    wait_for_cluster(&client, first, REQUEST_TIMEOUT)
        .map_err(|error| explained(operation.to_owned(), error))?;
    for name in topics.consumed() {
        native::describe_topics(client.client(), &[name], REQUEST_TIMEOUT)
            .map_err(|error| explained(format!("consume topic {name}"), error))?;
    }
    let cluster = client.client().fetch_cluster_id(REQUEST_TIMEOUT).ok_or_else(|| {
        let what = "the cluster does not report its id, which positions require";
        Error::new(ErrorKind::Unavailable, operation.to_owned(), what)
    })?;
    Ok(cluster.into())
}

#[async_trait]
impl Consumer for KafkaConsumer {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.ordered = true;
        capabilities.reports_idle = true;
        capabilities.delayed_retry = self.forwarder.is_some();
        let own = &self.handle.topics.own_headers;
        let are_trusted = match own.trust() {
            HeaderTrust::Trusted => true,
            HeaderTrust::Authenticated => own.seals(),
            HeaderTrust::Ignore => false,
        };
        capabilities.retries_lose_position = self.forwarder.is_some() && !are_trusted;
        capabilities.retention = self.retention;
        capabilities
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(KafkaAcker { handle: Arc::clone(&self.handle), forwarder: self.forwarder.clone() })
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        loop {
            if let Some(error) = self.handle.take_error() {
                return Err(error);
            }
            let next = match self.handle.with(|state| state.take(Instant::now())) {
                Ok(deliveries) => return Ok(Some(deliveries)),
                Err(next) => next,
            };
            if self.handle.has_ended() {
                let what = "the consumer has ended; open another one";
                return Err(Error::new(ErrorKind::Internal, "receive from Kafka", what));
            }
            self.handle.wait_to_receive(next).await;
        }
    }

    /// Asks the broker where each assigned partition ends.
    async fn is_idle(&mut self) -> Option<bool> {
        self.handle.ask_idle().await.ok().flatten()
    }

    fn flow(&self) -> Option<Arc<dyn FlowControl>> {
        Some(Arc::new(PartitionFlow(Arc::clone(&self.handle))))
    }

    fn notices(&mut self) -> Option<mpsc::UnboundedReceiver<Notice>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.handle.set_notices(sender);
        Some(receiver)
    }

    fn health(&self) -> Option<Arc<SourceHealth>> {
        Some(Arc::clone(&self.handle.health))
    }

    async fn close(&mut self) -> Result<(), Error> {
        let copied = async {
            while self.handle.with(|state| state.copies_in_flight()) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // After the timeout they are copied again, and found completed.
        let _ = tokio::time::timeout(COPIES_TIMEOUT, copied).await;
        self.handle.stop();
        let ended = async {
            while !self.handle.has_ended() {
                self.handle.wait_to_receive(None).await;
            }
        };
        tokio::time::timeout(CLOSE_TIMEOUT, ended).await.map_err(|_| {
            let what = "leaving the group timed out; the broker will end the membership, and the records settled last may be \
                        redelivered";
            Error::new(ErrorKind::Timeout, "close the Kafka consumer", what)
        })
    }
}

impl Drop for KafkaConsumer {
    /// Leaves the group in the background, and commits the offsets settled by then.
    fn drop(&mut self) {
        self.handle.stop();
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    async fn next(consumer: &mut KafkaConsumer) -> Vec<Vec<u8>> {
        let received = tokio::time::timeout(LIMIT, consumer.receive()).await.expect("a record in time");
        received.unwrap().unwrap().iter().map(|own| own.message.payload().to_vec()).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_client_that_has_forgotten_its_partitions_is_detected_and_recreated() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("orders", 1, 1).unwrap();
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().unwrap();
        let send = |payload| {
            producer.send(BaseRecord::<str, str>::to("orders").payload(payload)).unwrap();
            producer.flush(LIMIT).unwrap();
        };
        let mut config = KafkaConfig::new([cluster.bootstrap_servers()], ["orders"], "billing");
        config.topics.stall_timeout = Duration::from_secs(5);
        config.topics.drain_timeout = Some(Duration::from_millis(100));
        config.connection.properties.insert("session.timeout.ms".into(), "3000".into());
        let mut consumer = KafkaConsumer::open(config).await.unwrap();
        send("first");
        assert_eq!(next(&mut consumer).await, [b"first"]);
        consumer.handle.sabotage();
        while consumer.handle.is_sabotaged() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        send("second");
        // It was not acked: the new client delivers it again, and once more if that client is thought to stall as well.
        let mut again = next(&mut consumer).await;
        assert_eq!(again[0], b"first");
        while again[again.len() - 1] != b"second" {
            again = next(&mut consumer).await;
        }
        consumer.close().await.unwrap();
    }

    /// Without it each commit would be sent again every second, and each revocation would wait for its final commit in vain.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_commit_is_confirmed_to_its_partition() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("orders", 1, 1).unwrap();
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().unwrap();
        producer.send(BaseRecord::<str, str>::to("orders").payload("first")).unwrap();
        producer.flush(LIMIT).unwrap();
        let config = KafkaConfig::new([cluster.bootstrap_servers()], ["orders"], "billing");
        let mut consumer = KafkaConsumer::open(config).await.unwrap();
        let received = tokio::time::timeout(LIMIT, consumer.receive()).await.expect("a record in time");
        let tag = received.unwrap().unwrap().remove(0).tag;
        consumer.acker().settle(&[(tag, onceward::adapter::Settlement::Ack)]).await;
        let confirmed =
            || consumer.handle.with(|state| state.partitions.values().any(|own| own.confirmed == Some(1)));
        let waited = async {
            while !confirmed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, waited).await.expect("the commit is confirmed");
        consumer.close().await.unwrap();
    }
}
