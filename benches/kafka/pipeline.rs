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

use crate::stage::{First, PAYLOAD_BYTES, Stage, per_second};
use crate::stores::{Batches, alone};

/// As many as the pipeline has in a batch at most.
const BATCH: usize = 512;
/// One message in each lane.
const BY_KEY: (Ordering, usize) = (Ordering::BrokerKey, 1);
/// How much of a partition is claimed together.
const LANE_BATCHES: [usize; 4] = [1, 16, 64, 256];

pub(crate) async fn memory(stage: &Stage, rounds: usize) {
    let (mut plain, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        plain.push(stage.raw(&format!("memory-raw-{round}"), None));
        let store = Arc::new(MemoryStore::new());
        ours.push(run(stage, &format!("memory-{round}"), store, BY_KEY).await);
    }
    stage.report("memory", ("single polls", &plain), &[("pipeline", &ours)]);
}

pub(crate) async fn redis(stage: &Stage, rounds: usize) {
    let (_server, store) = redis_store();
    with(stage, rounds, "redis", store).await;
}

pub(crate) async fn postgres(stage: &Stage, rounds: usize) {
    let (_server, store) = postgres_store().await;
    with(stage, rounds, "postgres", store).await;
}

/// The order of partitions against that of keys, which all differ.
pub(crate) async fn order(stage: &Stage, rounds: usize) {
    let (server, store) = redis_store();
    in_order(stage, rounds, "redis", store).await;
    drop(server);
    let (_server, store) = postgres_store().await;
    in_order(stage, rounds, "postgres", store).await;
}

fn redis_store() -> (Redis, Arc<RedisStore>) {
    // Rewriting its file would be measured as well.
    let server = Redis::start_with(&["--auto-aof-rewrite-percentage", "0"]);
    let store = Arc::new(RedisStore::open(RedisConfig::new(server.url())).unwrap());
    (server, store)
}

async fn postgres_store() -> (Postgres, Arc<PgStore>) {
    let server = Postgres::start();
    let store = PgStore::open(PgConfig::new(server.url("postgres"))).await.unwrap();
    (server, Arc::new(store))
}

async fn with<S: Store>(stage: &Stage, rounds: usize, name: &str, store: Arc<S>) {
    let [mut raws, mut plain, mut ours] = [const { Vec::new() }; 3];
    for round in 0..rounds {
        raws.push(stage.raw_batches(&format!("{name}-raw-{round}")).await);
        let batches = Batches { count: stage.messages, size: BATCH, scope: format!("{name}-alone-{round}") };
        plain.push(alone(&store, batches).await);
        ours.push(run(stage, &format!("{name}-{round}"), Arc::clone(&store), BY_KEY).await);
    }
    stage.report(name, ("store alone", &plain), &[("pipeline", &ours)]);
    stage.report(&format!("{name}, raw"), ("polls in batches", &raws), &[("pipeline", &ours)]);
}

async fn in_order<S: Store>(stage: &Stage, rounds: usize, name: &str, store: Arc<S>) {
    let mut by_key = Vec::new();
    let mut by_partition = LANE_BATCHES.map(|_| Vec::new());
    for round in 0..rounds {
        by_key.push(run(stage, &format!("{name}-by-key-{round}"), Arc::clone(&store), BY_KEY).await);
        for (lane_batch, rates) in LANE_BATCHES.into_iter().zip(&mut by_partition) {
            let group = format!("{name}-by-{lane_batch}-{round}");
            rates.push(run(stage, &group, Arc::clone(&store), (Ordering::Partition, lane_batch)).await);
        }
    }
    let names = LANE_BATCHES.map(|lane_batch| format!("partitions by {lane_batch}"));
    let variants = names.iter().zip(&by_partition).map(|(name, rates)| (name.as_str(), &rates[..]));
    stage.report(&format!("order, {name}"), ("keys", &by_key), &variants.collect::<Vec<_>>());
}

async fn run<S: Store>(
    stage: &Stage,
    group: &str,
    store: Arc<S>,
    (ordering, lane_batch): (Ordering, usize),
) -> f64 {
    async fn handle(first: First, message: Message) -> Handled {
        first.get_or_init(Instant::now);
        assert_eq!(std::hint::black_box(message.payload()).len(), PAYLOAD_BYTES);
        Ok(())
    }
    let consumer = KafkaConsumer::open(stage.source(group)).await.unwrap();
    let first = First::default();
    let mut config = PipelineConfig { ordering, lane_batch, ..PipelineConfig::default() };
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
