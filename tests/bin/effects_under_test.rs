//! Writes a row for each record, together with its position, until it is stopped:
//! `effects-under-test BROKERS TOPIC GROUP POSTGRES-URL [keys]`.
//!
//! A row in `effects` is where its record stood, `PARTITION:OFFSET`, with the `id` in its payload, which is the key with `keys`. The
//! table has no constraint: doubled effects show.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use onceward::pipeline::config::OnMismatch;
use onceward::{Handled, HandlerError, KeyExtractor, KeySource, Message, Scope, tx_handler};
use onceward_kafka::KafkaConfig;
use onceward_kafka_transactions::{EffectKeys, EffectsConfig, KafkaEffects};
use onceward_postgres::{PgConfig, PgStore, PgTx};
use tokio_util::sync::CancellationToken;

async fn note((): (), message: Message, mut tx: PgTx<'_>) -> Handled {
    let place = message.position().map(|position| format!("{}:{}", position.partition, position.offset));
    let order: serde_json::Value = serde_json::from_slice(message.payload())?;
    let id = order["id"].as_str().ok_or_else(|| HandlerError::permanent("an order without an id"))?;
    sqlx::query("INSERT INTO effects (place, id) VALUES ($1, $2)")
        .bind(place)
        .bind(id)
        .execute(&mut *tx)
        .await?;
    Ok(())
}

#[allow(clippy::print_stderr)]
fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [brokers, topic, group, url, keys @ ..] = &args[..] else { return ExitCode::from(2) };
    let keys = match keys {
        [] => false,
        [keys] if keys == "keys" => true,
        _ => return ExitCode::from(2),
    };
    let Ok(runtime) = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
    else {
        return ExitCode::FAILURE;
    };
    match runtime.block_on(run(brokers, topic, group, url, keys)) {
        Ok(summary) => {
            eprintln!("{summary:?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

async fn run(
    brokers: &str,
    topic: &str,
    group: &str,
    url: &str,
    keys: bool,
) -> Result<onceward_kafka_transactions::EffectsSummary, onceward::Error> {
    let mut source = KafkaConfig::new([brokers], [topic], group);
    source.connection.properties.insert("session.timeout.ms".to_owned(), "4000".to_owned());
    source.connection.properties.insert("heartbeat.interval.ms".to_owned(), "300".to_owned());
    source.topics.drain_timeout = Some(Duration::from_secs(1));
    // Many small transactions: there is nearly always one to be killed in.
    source.topics.buffer_messages = 100;
    let store = Arc::new(
        PgStore::open({
            let mut config = PgConfig::new(url);
            config.options.max_connections = 10;
            config
        })
        .await?,
    );
    let shutdown = CancellationToken::new();
    let told = shutdown.clone();
    tokio::spawn(async move {
        if let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            term.recv().await;
            told.cancel();
        }
    });
    let scope = Scope::parse("effects")?;
    let mut config = EffectsConfig::new(source);
    if keys {
        let mut by_id =
            EffectKeys::new(KeyExtractor::new(&scope, vec![KeySource::JsonPointer("/id".to_owned())]));
        // A copy on another partition differs by what it is partitioned by.
        by_id.on_mismatch = OnMismatch::Process;
        config.keys = Some(by_id);
    }
    let handler = tx_handler(&*store, (), note);
    KafkaEffects::new(config)?.run(scope, store, handler, shutdown).await
}
