//! A transform that copies records until it is stopped: `transform-under-test BROKERS FROM TO GROUP TRANSACTIONAL-ID`.
//!
//! A result is where its record stood, `PARTITION:OFFSET`: a reader sees whether each has one.

use std::process::ExitCode;
use std::time::Duration;

use onceward::{Message, Outgoing};
use onceward_kafka::KafkaConfig;
use onceward_kafka_transactions::{KafkaTransform, TransformConfig};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [brokers, from, to, group, id] = &args[..] else { return ExitCode::from(2) };
    let Ok(runtime) = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
    else {
        return ExitCode::FAILURE;
    };
    runtime.block_on(run(brokers, from, to, group, id))
}

#[allow(clippy::print_stderr)]
async fn run(brokers: &str, from: &str, to: &str, group: &str, id: &str) -> ExitCode {
    let mut source = KafkaConfig::new([brokers], [from], group);
    source.connection.properties.insert("session.timeout.ms".to_owned(), "4000".to_owned());
    source.connection.properties.insert("heartbeat.interval.ms".to_owned(), "300".to_owned());
    source.topics.drain_timeout = Some(Duration::from_secs(1));
    let mut config = TransformConfig::new(source, id);
    // Many small transactions: there is nearly always one to be killed in.
    (config.batch_records, config.linger) = (50, Duration::from_millis(10));
    let shutdown = CancellationToken::new();
    let told = shutdown.clone();
    tokio::spawn(async move {
        if let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            term.recv().await;
            told.cancel();
        }
    });
    let to = to.to_owned();
    let copy = move |message: Message| {
        let made = message.position().map(|position| Outgoing {
            destination: to.clone(),
            payload: format!("{}:{}", position.partition, position.offset).into(),
            ..Outgoing::default()
        });
        async move { Ok(made.into_iter().collect()) }
    };
    let ended = match KafkaTransform::new(config) {
        Ok(transform) => transform.run(copy, shutdown).await,
        Err(error) => Err(error),
    };
    match ended {
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
