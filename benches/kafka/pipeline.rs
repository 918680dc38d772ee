//! The pipeline with each store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::pipeline::config::Ordering;
use onceward::telemetry::Counter;
use onceward::{
    Handled, KeySource, MemoryStore, Message, Pipeline, PipelineConfig, Scope, Store, handler_fn,
};
use onceward_kafka::KafkaConsumer;
use onceward_postgres::{PgConfig, PgStore};
use onceward_redis::{RedisConfig, RedisStore};
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::redis::Redis;
use tokio_util::sync::CancellationToken;

use crate::stage::{First, PAYLOAD_BYTES, Stage, per_second, tell};
use crate::stores::{Batches, alone};

/// As many as the pipeline has in a batch at most.
const BATCH: usize = 512;

pub(crate) async fn memory(stage: &Stage, rounds: usize) {
    let (mut plain, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        plain.push(stage.raw(&format!("memory-raw-{round}"), None));
        ours.push(run(stage, &format!("memory-{round}"), Arc::new(MemoryStore::new())).await);
    }
    tell("pipeline, store in memory, against single polls", &plain, &ours);
}

pub(crate) async fn redis(stage: &Stage, rounds: usize) {
    // Rewriting its file would be measured as well.
    let server = Redis::start_with(&["--auto-aof-rewrite-percentage", "0"]);
    let store = Arc::new(RedisStore::open(RedisConfig::new(server.url())).unwrap());
    with(stage, rounds, "redis", store).await;
}

pub(crate) async fn postgres(stage: &Stage, rounds: usize) {
    let server = Postgres::start();
    let config = PgConfig::new(server.url("postgres"));
    with(stage, rounds, "postgres", Arc::new(PgStore::open(config).await.unwrap())).await;
}

async fn with<S: Store>(stage: &Stage, rounds: usize, name: &str, store: Arc<S>) {
    let [mut raws, mut plain, mut ours] = [const { Vec::new() }; 3];
    for round in 0..rounds {
        raws.push(stage.raw_batches(&format!("{name}-raw-{round}")).await);
        let batches = Batches { count: stage.messages, size: BATCH, scope: format!("{name}-alone-{round}") };
        plain.push(alone(&store, batches).await);
        ours.push(run(stage, &format!("{name}-{round}"), Arc::clone(&store)).await);
    }
    tell(&format!("pipeline with {name}, against {name} alone"), &plain, &ours);
    tell(&format!("pipeline with {name}, against polls in batches"), &raws, &ours);
}

async fn run<S: Store>(stage: &Stage, group: &str, store: Arc<S>) -> u64 {
    async fn handle(first: First, message: Message) -> Handled {
        first.get_or_init(Instant::now);
        assert_eq!(std::hint::black_box(message.payload()).len(), PAYLOAD_BYTES);
        Ok(())
    }
    let consumer = KafkaConsumer::open(stage.source(group)).await.unwrap();
    let first = First::default();
    let mut config = PipelineConfig { ordering: Ordering::BrokerKey, ..PipelineConfig::default() };
    (config.concurrency, config.max_batch) = (2 * BATCH, BATCH);
    let pipeline = Pipeline::builder(Scope::parse(group).unwrap(), consumer, store)
        .keys([KeySource::MessageId])
        .config(config)
        .park_exhausted()
        .handler(handler_fn(Arc::clone(&first), handle))
        .unwrap();
    let counters = pipeline.counters();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(pipeline.run(shutdown.clone()));
    while counters.get(Counter::Handled) < stage.messages as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let rate = per_second(stage.messages, *first.get().unwrap());
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(stage.committed(group), stage.messages, "not everything was committed");
    rate
}
