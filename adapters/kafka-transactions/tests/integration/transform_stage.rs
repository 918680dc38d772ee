//! The topics of a transform's tests, on a real broker or on the client's mock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onceward::adapter::Consumer;
use onceward::{Message, Outgoing};
use onceward_kafka::KafkaConfig;
use onceward_kafka_transactions::{KafkaTransform, TransformConfig, TransformSummary};
use rdkafka::mocking::MockCluster;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{LIMIT, Topic, take, text, unique, until};

/// A topic with records, the one for their results, and how often each was transformed.
pub(crate) struct Stage {
    pub(crate) input: Topic,
    pub(crate) output: Topic,
    pub(crate) runs: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Stage {
    pub(crate) async fn new(partitions: i32) -> Self {
        let (input, output) = (Topic::new(partitions).await, Topic::new(1).await);
        Self { input, output, runs: Arc::default() }
    }

    pub(crate) fn config(&self) -> TransformConfig {
        let mut config = TransformConfig::new(self.input.config(), &self.input.name);
        config.linger = Duration::from_millis(20);
        config
    }

    /// Copies each record, and notes it.
    pub(crate) fn start(&self, config: TransformConfig) -> Running {
        let (to, runs) = (self.output.name.clone(), Arc::clone(&self.runs));
        self.start_with(config, move |message: Message| {
            *runs.lock().unwrap().entry(payload(&message)).or_default() += 1;
            let made = outgoing(&to, &message);
            async move { Ok(vec![made]) }
        })
    }

    pub(crate) fn start_with(
        &self,
        config: TransformConfig,
        transform: impl onceward_kafka_transactions::Transform,
    ) -> Running {
        let shutdown = CancellationToken::new();
        let transforming = KafkaTransform::new(config).unwrap().run(transform, shutdown.clone());
        Running { shutdown, task: tokio::spawn(transforming) }
    }

    /// What a reader of what is committed finds, until there are `count`, and no more.
    pub(crate) async fn results(&self, count: usize) -> Vec<String> {
        let mut results = self.results_in_order(count).await;
        results.sort();
        results
    }

    /// The same, as they are in the topic, which has one partition.
    pub(crate) async fn results_in_order(&self, count: usize) -> Vec<String> {
        let mut reader = self.output.open().await;
        let results: Vec<_> = take(&mut reader, count).await.iter().map(text).collect();
        assert_eq!(reader.is_idle().await, Some(true), "there are more than {count}");
        reader.close().await.unwrap();
        results
    }
}

pub(crate) fn payload(message: &Message) -> String {
    String::from_utf8_lossy(message.payload()).into_owned()
}

pub(crate) fn outgoing(to: &str, message: &Message) -> Outgoing {
    Outgoing { destination: to.to_owned(), payload: message.payload().clone(), ..Outgoing::default() }
}

pub(crate) struct Running {
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<TransformSummary, onceward::Error>>,
}

impl Running {
    pub(crate) async fn stop(self) -> TransformSummary {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.task).await.unwrap().unwrap().unwrap()
    }
}

pub(crate) fn sorted(partitions: i32, each: usize) -> Vec<String> {
    let mut all: Vec<_> = (0..partitions)
        .flat_map(|partition| (0..each).map(move |number| format!("{partition}:{number}")))
        .collect();
    all.sort();
    all
}

/// A mock with a topic of `count` records, and a transform on it that copies.
pub(crate) async fn on_mock(
    count: usize,
) -> (MockCluster<'static, rdkafka::producer::DefaultProducerContext>, Stage, TransformConfig) {
    let cluster = MockCluster::new(1).unwrap();
    let [input, output] = ["in", "out"].map(|what| {
        let name = unique(what);
        cluster.create_topic(&name, 1, 1).unwrap();
        Topic::made(cluster.bootstrap_servers(), name, 1)
    });
    input.fill(count).await;
    let source = KafkaConfig::new([&input.bootstrap], [&input.name], &input.group);
    let mut config = TransformConfig::new(source, &input.name);
    config.commit_timeout = Duration::from_secs(1);
    (cluster, Stage { input, output, runs: Arc::default() }, config)
}

/// The mock keeps no offsets of transactions: the evidence is how often each record ran, and the summary.
pub(crate) async fn until_all_ran(stage: &Stage, count: usize, runs: u32) {
    let all = || stage.runs.lock().unwrap().values().filter(|own| **own >= runs).count() >= count;
    until(&format!("all ran {runs} times"), all).await;
}
