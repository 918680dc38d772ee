//! A whole pipeline whose rights, login, password or table are taken away for a moment while handlers run: no effect
//! happens twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use onceward::telemetry::Counter;
use onceward::testing::MemoryBroker;
use onceward::{Handled, KeySource, Message, Pipeline, Scope, handler_fn};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;

const MESSAGES: usize = 16;

type Runs = Arc<Mutex<HashMap<String, u32>>>;

async fn slow(runs: Runs, message: Message) -> Handled {
    let id = String::from_utf8(message.payload().to_vec())?;
    *runs.lock().unwrap().entry(id).or_default() += 1;
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(())
}

const END_SESSIONS: &str =
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'worker'";

/// Runs 16 handlers, executes `take` and ends the sessions while they run, and executes `give_back` three seconds later.
async fn no_effect_runs_twice(take: &[&str], give_back: &[&str]) {
    let server = Postgres::start();
    PgStore::migrate(&PgConfig::new(server.url("postgres"))).await.unwrap();
    server.sql("CREATE ROLE worker LOGIN PASSWORD 'pass'");
    let mut config = PgConfig::new(server.url("worker"));
    config.endpoint.password = Some("pass".into());
    config.options.migrate = false;
    server.sql(&PgStore::grants(&config.options, "worker").unwrap());
    let lines = "SELECT unnest(ARRAY['host all worker 127.0.0.1/32 scram-sha-256', 'host all all 127.0.0.1/32 trust'])";
    let file = server.sql("SHOW hba_file");
    server.sql(&format!("COPY ({lines}) TO '{file}'"));
    server.sql("SELECT pg_reload_conf()");
    let store = PgStore::open(config).await.unwrap();
    let (broker, runs) = (MemoryBroker::finite(), Runs::default());
    for number in 0..MESSAGES {
        broker.publish(Message::builder(number.to_string()));
    }
    let pipeline = Pipeline::builder(Scope::parse("refused").unwrap(), broker.consumer(), Arc::new(store))
        .keys([KeySource::PayloadHash])
        .park_exhausted()
        .handler(handler_fn(Arc::clone(&runs), slow))
        .unwrap();
    let running = tokio::spawn(pipeline.run(Default::default()));
    let end = Instant::now() + Duration::from_secs(60);
    while runs.lock().unwrap().len() < MESSAGES {
        assert!(Instant::now() < end, "the handlers do not start");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for sql in take.iter().chain([&END_SESSIONS]) {
        server.sql(sql);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!running.is_finished(), "completions are refused by now");
    for sql in give_back {
        server.sql(sql);
    }
    let summary = running.await.unwrap().unwrap();
    let runs = runs.lock().unwrap();
    assert!(runs.len() == MESSAGES && runs.values().all(|runs| *runs == 1), "{runs:?}");
    assert_eq!(summary.handled(), MESSAGES as u64);
    assert_eq!(summary.counters().get(Counter::SuspectedDoubleEffects), 0);
    assert!(summary.counters().get(Counter::StoreErrors) > 0, "completions were refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_is_missing_for_a_moment() {
    no_effect_runs_twice(
        &["REVOKE INSERT, UPDATE ON onceward.keys FROM worker"],
        &["GRANT INSERT, UPDATE ON onceward.keys TO worker"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_may_not_log_in_for_a_moment() {
    no_effect_runs_twice(&["ALTER ROLE worker NOLOGIN"], &["ALTER ROLE worker LOGIN"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_is_another_for_a_moment() {
    no_effect_runs_twice(&["ALTER ROLE worker PASSWORD 'other'"], &["ALTER ROLE worker PASSWORD 'pass'"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_has_another_name_for_a_moment() {
    no_effect_runs_twice(
        &["ALTER TABLE onceward.keys RENAME TO away"],
        &["ALTER TABLE onceward.away RENAME TO keys"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_may_not_be_used_for_a_moment() {
    no_effect_runs_twice(
        &["REVOKE USAGE ON SCHEMA onceward FROM worker"],
        &["GRANT USAGE ON SCHEMA onceward TO worker"],
    )
    .await;
}
