//! Delivers the records of topics: [`KafkaConsumer`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::telemetry::SourceHealth;
use onceward::{Acker, Capabilities, Consumer, Delivery, Error, ErrorKind, FlowControl, HeaderTrust, Notice};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tokio::sync::{mpsc, oneshot};

use crate::acker::KafkaAcker;
use crate::begin::Starts;
use crate::config::{self, KafkaConfig, Settled, TopicConfig};
use crate::context::{Hooked, Users};
use crate::flow::Flow;
use crate::log::Traced;
use crate::password::PasswordFile;
use crate::probe::Probe;
use crate::publisher::KafkaPublisher;
use crate::reach::reach;
use crate::retry::Waiting;
use crate::shared::Shared;
use crate::watch::Watch;
use crate::{error, facts, native, overseer, poll, task};

/// How long the cluster may take to tell about itself and the topics.
const REPLY_LIMIT: Duration = Duration::from_secs(10);
/// How long leaving the group may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// How long copies that are on their way to retry topics are waited for before that.
const COPIES_LIMIT: Duration = Duration::from_secs(3);

/// The records of topics, as a member of a consumer group.
///
/// It comes back by itself after a broker was away, and goes on after rebalances. Offsets are committed per partition up to
/// the first record that is not settled, so that a crash repeats what was incomplete and what was settled above it; the
/// store knows the latter.
///
/// A position's incarnation is the cluster's id and the topic's: records of a topic that was deleted and created again under
/// its name are new ones. (Brokers older than 2.8 have no such ids; there it is the topic's name.) A topic that is recreated,
/// or truncated, while this runs or while it does not, is read from its start: the id is kept beside each committed offset.
/// In [`health`](Consumer::health) that is counted, and so are records that retention removed before they were read.
pub struct KafkaConsumer {
    pub(crate) shared: Arc<Shared>,
    retention: Option<Duration>,
    waiting: Option<Arc<Waiting>>,
}

impl KafkaConsumer {
    /// Connects, looks at the topics and joins the group.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if values cannot be used or there is no such topic, [`ErrorKind::Denied`] if the broker
    /// refuses, [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] if it cannot be reached.
    pub async fn open(config: KafkaConfig) -> Result<Self, Error> {
        config.check()?;
        let password = config.password();
        Self::build(config.client(), Traced, config.topics, None, password).await
    }

    /// As [`open`](Self::open), with partitions that start where `starts` says.
    pub(crate) async fn open_owned(config: KafkaConfig, starts: Arc<dyn Starts>) -> Result<Self, Error> {
        config.check()?;
        let password = config.password();
        Self::build(config.client(), Traced, config.topics, Some(starts), password).await
    }

    /// As [`open`](Self::open), with the user's own client configuration and context. The context's logs, statistics, errors
    /// and OAuth tokens are used; rebalances are this consumer's. Properties that would break what is promised are refused.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn from_client_config<C: ClientContext + 'static>(
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
        starts: Option<Arc<dyn Starts>>,
        password: Option<Arc<PasswordFile>>,
    ) -> Result<Self, Error> {
        let Settled { client, from_end } = config::settled(client, &topics)?;
        let topics = topics.fitted(&client);
        let context = Users::new(context).with_password(password.clone());
        let waiting = match topics.retry_topics.is_empty() {
            true => None,
            false => {
                let publisher = KafkaPublisher::build(client.clone(), password)?;
                Some(Arc::new(Waiting::new(publisher, &topics)))
            }
        };
        let (asked, asking, names) = (client.clone(), context.clone(), topics.names.clone());
        let shared = task::blocking(move || start(client, context, topics, from_end, starts)).await??;
        // From here on dropping this future leaves the group.
        let mut consumer = Self { shared, retention: None, waiting };
        consumer.retention = facts::retention(&asked, asking, &names).await;
        Ok(consumer)
    }

    /// How many partitions are assigned to this member at this moment.
    pub fn assigned_partitions(&self) -> usize {
        self.shared.assigned()
    }

    /// True if the partition is being taken away, or is gone: nothing more of this assignment is to be begun.
    pub(crate) fn is_leaving(&self, epoch: u64) -> bool {
        self.shared.lock().assigned.get(&epoch).is_none_or(|own| own.leaving)
    }

    fn stop(&self) {
        self.shared.lock().stop = true;
        self.shared.change();
    }
}

fn start<C: ClientContext + 'static>(
    client: ClientConfig,
    context: Users<C>,
    topics: TopicConfig,
    from_end: bool,
    starts: Option<Arc<dyn Starts>>,
) -> Result<Arc<Shared>, Error> {
    let operation = format!("consume topic {}", topics.names.join(", "));
    // The cluster is asked before the group is joined, by a client that has no group.
    let mut plain = client.clone();
    plain.remove("group.id");
    plain.remove("group.instance.id");
    let asked: BaseConsumer<Users<C>> =
        plain.create_with_context(context.clone()).map_err(|error| error::kafka(operation.clone(), error))?;
    let explained = |operation, error| context.trouble.explain(operation, error, ErrorKind::Denied);
    let first = topics.names.first().map_or("", String::as_str);
    reach(&asked, first, REPLY_LIMIT).map_err(|error| explained(operation.clone(), error))?;
    for name in topics.consumed() {
        native::describe(asked.client(), &[name], REPLY_LIMIT)
            .map_err(|error| explained(format!("consume topic {name}"), error))?;
    }
    let cluster = asked.client().fetch_cluster_id(REPLY_LIMIT).ok_or_else(|| {
        let what = "the cluster does not tell its id; positions need it";
        Error::new(ErrorKind::Unavailable, operation.clone(), what)
    })?;
    drop(asked);
    let shared = Shared::new(topics, cluster.into());
    let polling = Arc::clone(&shared);
    let watch = Watch::new(Probe::new(&client, context.clone()));
    let (looking, looked) = (context.clone(), Arc::clone(&shared));
    let no_thread = |error| {
        Error::new(ErrorKind::Unavailable, "start a Kafka consumer", "no thread can be started")
            .with_source(error)
    };
    let join = {
        let shared = Arc::clone(&shared);
        move || -> Result<BaseConsumer<Hooked<C>>, Error> {
            let failed = |error| error::kafka(operation.clone(), error);
            let hooked = Hooked::new(context.clone(), Arc::clone(&shared), &client, from_end, starts.clone());
            let consumer: BaseConsumer<_> = client.create_with_context(hooked).map_err(failed)?;
            consumer.subscribe(&shared.topics.consumed()).map_err(failed)?;
            Ok(consumer)
        }
    };
    let consumer = join()?;
    let thread = std::thread::Builder::new().name("onceward-kafka".into());
    thread.spawn(move || poll::run(consumer, join, watch, &polling)).map_err(no_thread)?;
    overseer::spawn(plain, looking, looked).map_err(no_thread)?;
    Ok(shared)
}

#[async_trait]
impl Consumer for KafkaConsumer {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.ordered = true;
        capabilities.delayed_retry = self.waiting.is_some();
        let own = &self.shared.topics.own_headers;
        let proven = match own.trust() {
            HeaderTrust::Trusted => true,
            HeaderTrust::Authenticated => own.seals(),
            HeaderTrust::Ignore => false,
        };
        capabilities.retries_lose_position = self.waiting.is_some() && !proven;
        capabilities.retention = self.retention;
        capabilities
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(KafkaAcker { shared: Arc::clone(&self.shared), waiting: self.waiting.clone() })
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        loop {
            if let Some(error) = self.shared.take_error() {
                return Err(error);
            }
            let next = match self.shared.take() {
                Ok(deliveries) => return Ok(Some(deliveries)),
                Err(next) => next,
            };
            if self.shared.lock().ended {
                let what = "the consumer has ended; open another one";
                return Err(Error::new(ErrorKind::Internal, "receive from Kafka", what));
            }
            match next {
                Some(at) => drop(tokio::time::timeout_at(at.into(), self.shared.arrived.notified()).await),
                None => self.shared.arrived.notified().await,
            }
        }
    }

    /// Asks the broker where each assigned partition ends.
    async fn is_idle(&mut self) -> Option<bool> {
        let (question, answer) = oneshot::channel();
        {
            let mut state = self.shared.lock();
            if state.ended {
                return None;
            }
            state.idle_questions.push(question);
        }
        answer.await.ok().flatten()
    }

    fn flow(&self) -> Option<Arc<dyn FlowControl>> {
        Some(Arc::new(Flow(Arc::clone(&self.shared))))
    }

    fn notices(&mut self) -> Option<mpsc::UnboundedReceiver<Notice>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.shared.lock().notices = Some(sender);
        Some(receiver)
    }

    fn health(&self) -> Option<Arc<SourceHealth>> {
        Some(Arc::clone(&self.shared.health))
    }

    async fn close(&mut self) -> Result<(), Error> {
        let copied = async {
            while self.shared.lock().copies() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Otherwise they are copied again, and found completed.
        let _ = tokio::time::timeout(COPIES_LIMIT, copied).await;
        self.stop();
        let ended = async {
            while !self.shared.lock().ended {
                self.shared.arrived.notified().await;
            }
        };
        tokio::time::timeout(CLOSE_LIMIT, ended).await.map_err(|_| {
            let what = "the group was not left in time; the broker ends the membership by itself, and what was settled \
                        last may be delivered again";
            Error::new(ErrorKind::Timeout, "close the Kafka consumer", what)
        })
    }
}

impl Drop for KafkaConsumer {
    /// Leaves the group in the background; what is settled by then is committed.
    fn drop(&mut self) {
        self.stop();
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
    async fn a_client_that_has_forgotten_its_partitions_is_noticed_and_replaced() {
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
        config.properties.insert("session.timeout.ms".into(), "3000".into());
        let mut consumer = KafkaConsumer::open(config).await.unwrap();
        send("first");
        assert_eq!(next(&mut consumer).await, [b"first"]);
        consumer.shared.lock().sabotaged = true;
        while consumer.shared.lock().sabotaged {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        send("second");
        // Not acked before: it comes again from the new client, and once more if that was thought to stall as well.
        let mut again = next(&mut consumer).await;
        assert_eq!(again[0], b"first");
        while again[again.len() - 1] != b"second" {
            again = next(&mut consumer).await;
        }
        consumer.close().await.unwrap();
    }

    /// Without it each commit would be sent again every second, and each revocation would wait for its last commit in vain.
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
        consumer.acker().settle(&[(tag, onceward::Settlement::Ack)]).await;
        let confirmed = || consumer.shared.lock().assigned.values().any(|own| own.confirmed == Some(1));
        let waited = async {
            while !confirmed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, waited).await.expect("the commit is confirmed");
        consumer.close().await.unwrap();
    }
}
