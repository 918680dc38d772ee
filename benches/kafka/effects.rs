//! Effects in Postgres: with positions, with keys as well, and alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::{Handled, KeyExtractor, KeySource, Message, Scope, TxHandler, tx_handler};
use onceward_kafka_transactions::{EffectKeys, EffectsConfig, KafkaEffects};
use onceward_postgres::{PgConfig, PgStore, PgTx};
use onceward_test_servers::postgres::Postgres;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio_util::sync::CancellationToken;

use crate::stage::{First, PARTITIONS, Stage, per_second};

/// As many as a partition's transaction has at most.
const TOGETHER: usize = 2000;
const INSERT: &str = "INSERT INTO effects (id, payload) VALUES ($1, $2)";

struct Database {
    store: Arc<PgStore>,
    pool: PgPool,
    _server: Postgres,
}

impl Database {
    async fn start() -> Self {
        let server = Postgres::start();
        server.sql("CREATE TABLE effects (id bytea NOT NULL, payload bytea NOT NULL)");
        let mut config = PgConfig::new(server.url("postgres"));
        config.options.max_connections = 10;
        let store = Arc::new(PgStore::open(config).await.unwrap());
        let pool =
            PgPoolOptions::new().test_before_acquire(false).connect(&server.url("postgres")).await.unwrap();
        Self { store, pool, _server: server }
    }

    /// How many records have their position in the database.
    async fn processed(&self, scope: &Scope) -> usize {
        let sql = "SELECT coalesce(sum(watermark), 0)::bigint FROM onceward.processed_offsets \
                   WHERE scope = (SELECT id FROM onceward.scopes WHERE name = $1)";
        let sum: i64 = sqlx::query_scalar(sql).bind(scope.as_str()).fetch_one(&self.pool).await.unwrap();
        usize::try_from(sum).unwrap()
    }

    async fn empty(&self) {
        sqlx::query("TRUNCATE effects").execute(&self.pool).await.unwrap();
    }

    async fn rows(&self) -> usize {
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM effects").fetch_one(&self.pool).await.unwrap();
        usize::try_from(count).unwrap()
    }
}

async fn nothing(first: First, message: Message, _: PgTx<'_>) -> Handled {
    first.get_or_init(Instant::now);
    std::hint::black_box(message.payload());
    Ok(())
}

async fn row(first: First, message: Message, mut tx: PgTx<'_>) -> Handled {
    first.get_or_init(Instant::now);
    let id = message.id().unwrap_or_default();
    sqlx::query(INSERT).bind(id).bind(&message.payload()[..]).execute(&mut *tx).await?;
    Ok(())
}

pub(crate) async fn position(stage: &Stage, rounds: usize) {
    let database = Database::start().await;
    let (mut plain, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        plain.push(stage.raw_batches(&format!("position-raw-{round}")).await);
        let first = First::default();
        let handler = tx_handler(&*database.store, First::clone(&first), nothing);
        ours.push(run(stage, &database, &format!("position-{round}"), handler, &first, false).await);
    }
    stage.report("position", ("polls in batches", &plain), &[("positions, no effects", &ours)]);
}

pub(crate) async fn effects(stage: &Stage, rounds: usize) {
    let database = Database::start().await;
    let (mut plain, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        database.empty().await;
        plain.push(alone(stage, &database).await);
        ours.push(rows(stage, &database, &format!("effects-{round}"), false).await);
    }
    stage.report("effects", ("rows alone", &plain), &[("rows and positions", &ours)]);
}

pub(crate) async fn both(stage: &Stage, rounds: usize) {
    let database = Database::start().await;
    let (mut plain, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        plain.push(rows(stage, &database, &format!("positions-{round}"), false).await);
        ours.push(rows(stage, &database, &format!("both-{round}"), true).await);
    }
    stage.report("both", ("rows and positions", &plain), &[("rows, positions and keys", &ours)]);
}

async fn rows(stage: &Stage, database: &Database, group: &str, keys: bool) -> f64 {
    database.empty().await;
    let first = First::default();
    let handler = tx_handler(&*database.store, First::clone(&first), row);
    let rate = run(stage, database, group, handler, &first, keys).await;
    assert_eq!(database.rows().await, stage.messages, "one row for each record");
    rate
}

async fn run(
    stage: &Stage,
    database: &Database,
    group: &str,
    handler: impl TxHandler<PgStore>,
    first: &First,
    keys: bool,
) -> f64 {
    let scope = Scope::parse(group).unwrap();
    let mut config = EffectsConfig::new(stage.source(group));
    config.keys = keys.then(|| EffectKeys::new(KeyExtractor::new(&scope, vec![KeySource::MessageId])));
    let shutdown = CancellationToken::new();
    let effects = KafkaEffects::new(config).unwrap();
    let running =
        tokio::spawn(effects.run(scope.clone(), Arc::clone(&database.store), handler, shutdown.clone()));
    while database.processed(&scope).await < stage.messages {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let rate = per_second(stage.messages, *first.get().unwrap());
    shutdown.cancel();
    assert_eq!(running.await.unwrap().unwrap().records, stage.messages as u64);
    rate
}

/// The same rows, from as many tasks as there are partitions, as many in a transaction as there are at most.
async fn alone(stage: &Stage, database: &Database) -> f64 {
    let each = stage.messages / PARTITIONS.unsigned_abs() as usize;
    let started = Instant::now();
    let tasks = (0..PARTITIONS).map(|partition| {
        let pool = database.pool.clone();
        tokio::spawn(async move {
            let payload = [b'x'; crate::stage::PAYLOAD_BYTES];
            let numbers: Vec<_> = (0..each).collect();
            for numbers in numbers.chunks(TOGETHER) {
                let mut tx = pool.begin().await.unwrap();
                for number in numbers {
                    let id = format!("{partition}-{number}");
                    let insert = sqlx::query(INSERT).bind(id.as_bytes()).bind(&payload[..]);
                    insert.execute(&mut *tx).await.unwrap();
                }
                tx.commit().await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    per_second(each * PARTITIONS.unsigned_abs() as usize, started)
}
