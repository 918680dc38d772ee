//! Tests of bare `sqlx` errors that a handler returns: one that is not the message's fault uses no attempt.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use onceward::telemetry::Counter;
use onceward::testing::MemoryBroker;
use onceward::{Handled, KeySource, Message, Pipeline, PipelineConfig, Scope, handler_fn, tx_handler};
use onceward_postgres::{PgConfig, PgStore, PgTx};
use onceward_test_servers::postgres::Postgres;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// The attempts in which each message was run.
type Runs = Arc<Mutex<HashMap<String, Vec<u32>>>>;

/// Fails twice with the SQLSTATE that the message names, as the server reports it.
async fn fails(runs: &Runs, message: &Message, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let code = String::from_utf8_lossy(message.payload()).into_owned();
    let before = {
        let mut runs = runs.lock().unwrap();
        let own = runs.entry(code.clone()).or_default();
        own.push(message.attempt());
        own.len()
    };
    if before > 2 {
        return Ok(());
    }
    let raise = format!("DO $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END $$");
    sqlx::raw_sql(AssertSqlSafe(raise)).execute(conn).await.map(drop)
}

async fn in_its_transaction(runs: Runs, message: Message, mut tx: PgTx<'_>) -> Handled {
    fails(&runs, &message, &mut tx).await?;
    Ok(())
}

async fn on_its_own(runs: Runs, message: Message) -> Handled {
    let mut conn = PgConnection::connect(&Postgres::shared().url("postgres")).await?;
    fails(&runs, &message, &mut conn).await.map_err(onceward_postgres::handler_error)?;
    Ok(())
}

const FREE: [&str; 7] = ["40001", "40P01", "55P03", "57P03", "53300", "53100", "25006"];
const CHARGED: [&str; 3] = ["42P01", "22012", "XX000"];

/// Runs one message for each SQLSTATE, with `transactional`, and the runs that share a transaction, as said.
async fn run(schema: &str, transactional: bool, shared: usize) -> Runs {
    let mut config = PgConfig::new(Postgres::shared().url("postgres"));
    config.options.schema = schema.into();
    let store = Arc::new(PgStore::open(config).await.unwrap());
    let (broker, runs) = (MemoryBroker::finite(), Runs::default());
    FREE.iter().chain(&CHARGED).for_each(|code| broker.publish(Message::builder(*code)));
    let mut config = PipelineConfig { transaction_batch: shared, ..PipelineConfig::default() };
    config.retry.backoff.initial = std::time::Duration::from_millis(5);
    let builder = Pipeline::builder(Scope::parse("errors").unwrap(), broker.consumer(), Arc::clone(&store))
        .keys([KeySource::PayloadHash])
        .config(config)
        .park_exhausted();
    let running = match transactional {
        true => {
            let handler = tx_handler(&*store, Arc::clone(&runs), in_its_transaction);
            tokio::spawn(builder.transactional_handler(handler).unwrap().run(Default::default()))
        }
        false => {
            let handler = handler_fn(Arc::clone(&runs), on_its_own);
            tokio::spawn(builder.handler(handler).unwrap().run(Default::default()))
        }
    };
    let summary = running.await.unwrap().unwrap();
    assert_eq!(summary.handled(), (FREE.len() + CHARGED.len()) as u64);
    assert_eq!(summary.counters().get(Counter::RunsFailed), 2 * CHARGED.len() as u64, "attempts are used");
    runs
}

fn assert_charged(runs: &Runs, case: &str) {
    let runs = runs.lock().unwrap();
    for code in FREE {
        assert_eq!(runs[code], [1, 1, 1], "{case}: {code}");
    }
    for code in CHARGED {
        assert_eq!(runs[code], [1, 2, 3], "{case}: {code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_error_in_a_transaction_uses_an_attempt_only_where_the_message_may_be_to_blame() {
    for (schema, shared) in [("errors_alone", 1), ("errors_shared", 8)] {
        assert_charged(&run(schema, true, shared).await, schema);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_without_such_a_transaction_says_it_with_one_call() {
    assert_charged(&run("errors_own", false, 1).await, "own");
}
