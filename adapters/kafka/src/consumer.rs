//! Delivers the records of topics: [`KafkaConsumer`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::{Acker, Capabilities, Consumer, Delivery, Error, ErrorKind, SettleQueue};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, DefaultConsumerContext};
use tokio::sync::oneshot;

use crate::acker::KafkaAcker;
use crate::config::{self, KafkaConfig, TopicConfig};
use crate::context::Hooked;
use crate::shared::Shared;
use crate::{error, poll};

/// How long the cluster may take to tell about itself and the topics.
const REPLY_LIMIT: Duration = Duration::from_secs(10);
/// How long leaving the group may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// The records of topics, as a member of a consumer group.
///
/// It comes back by itself after a broker was away, and goes on after rebalances. Offsets are committed per partition up to
/// the first record that is not settled, so that a crash repeats what was incomplete and what was settled above it; the
/// store knows the latter.
///
/// A position's incarnation is the cluster's id and the topic's name: a topic that is deleted and made again under its name
/// is not told apart. With `isolation.level=read_committed`, a transaction's end marker at the end of a partition is
/// committed only once a record follows it: the lag stays at 1 there.
pub struct KafkaConsumer {
    shared: Arc<Shared>,
    settle_queue: Arc<SettleQueue>,
}

impl KafkaConsumer {
    /// Connects, looks at the topics and joins the group.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if values cannot be used or there is no such topic, [`ErrorKind::Denied`] if the broker
    /// refuses, [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] if it cannot be reached.
    pub async fn open(config: KafkaConfig) -> Result<Self, Error> {
        config.check()?;
        Self::from_client_config(config.client(), DefaultConsumerContext, config.topics).await
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
        let client = config::settled(client, &topics)?;
        let start = move || start(&client, context, topics);
        let started = tokio::task::spawn_blocking(start).await;
        let shared = started.map_err(|error| {
            Error::new(ErrorKind::Internal, "start a Kafka consumer", "the task that starts it panicked")
                .with_source(error)
        })??;
        Ok(Self { shared, settle_queue: SettleQueue::new() })
    }

    /// How many partitions are assigned to this member at this moment.
    pub fn assigned_partitions(&self) -> usize {
        self.shared.positions().len()
    }

    fn stop(&self) {
        self.shared.lock().stop = true;
        self.shared.change();
    }
}

fn start<C: ClientContext + 'static>(
    client: &ClientConfig,
    context: C,
    topics: TopicConfig,
) -> Result<Arc<Shared>, Error> {
    let operation = || format!("consume topic {}", topics.names.join(", "));
    // The cluster is asked before the group is joined, by a client that has no group.
    let mut plain = client.clone();
    plain.remove("group.id");
    let asked: BaseConsumer = plain.create().map_err(|error| error::kafka(operation(), error))?;
    for name in &topics.names {
        let told = asked.fetch_metadata(Some(name), REPLY_LIMIT);
        let told = told.map_err(|error| error::kafka(operation(), error))?;
        let topic = told.topics().iter().find(|topic| topic.name() == name);
        if let Some(failed) = topic.and_then(|topic| topic.error()) {
            let failed = rdkafka::error::KafkaError::MetadataFetch(failed.into());
            return Err(error::kafka(format!("consume topic {name}"), failed));
        }
    }
    let cluster = asked.client().fetch_cluster_id(REPLY_LIMIT).ok_or_else(|| {
        Error::new(ErrorKind::Unavailable, operation(), "the cluster does not tell its id; positions need it")
    })?;
    drop(asked);
    let names = topics.names.clone();
    let shared = Shared::new(topics, cluster.into());
    let hooked = Hooked { user: context, shared: Arc::clone(&shared) };
    let failed = |error| error::kafka(format!("consume topic {}", names.join(", ")), error);
    let consumer: BaseConsumer<Hooked<C>> = client.create_with_context(hooked).map_err(failed)?;
    let borrowed: Vec<_> = names.iter().map(String::as_str).collect();
    consumer.subscribe(&borrowed).map_err(failed)?;
    let polling = Arc::clone(&shared);
    let thread = std::thread::Builder::new().name("onceward-kafka".into());
    thread.spawn(move || poll::run(consumer, &polling)).map_err(|error| {
        Error::new(ErrorKind::Unavailable, "start a Kafka consumer", "no thread can be started")
            .with_source(error)
    })?;
    Ok(shared)
}

#[async_trait]
impl Consumer for KafkaConsumer {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.ordered = true;
        capabilities
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(KafkaAcker { shared: Arc::clone(&self.shared) })
    }

    fn settle_queue(&self) -> Arc<SettleQueue> {
        Arc::clone(&self.settle_queue)
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        loop {
            if let Some(error) = self.shared.take_error() {
                return Err(error);
            }
            let next = match self.shared.take(&self.settle_queue) {
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

    async fn close(&mut self) -> Result<(), Error> {
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
