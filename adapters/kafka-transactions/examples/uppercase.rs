//! Transforms the records of a topic into those of another one, each once, until Ctrl-C:
//!
//! ```sh
//! cargo run -p onceward-kafka-transactions --example uppercase -- 127.0.0.1:9092 words uppercase
//! ```
//!
//! Both topics must exist. Kill the program at any moment and start it again: a reader with
//! `isolation.level=read_committed` finds one result for each record.
#![allow(clippy::print_stdout, missing_docs, unreachable_pub, dead_code)]

use onceward::{Error, HandlerError, Message, Outgoing};
use onceward_kafka::KafkaConfig;
use onceward_kafka_transactions::{KafkaTransform, TransformConfig, TransformSummary};
use tokio_util::sync::CancellationToken;

/// Runs until `shutdown` fires.
pub async fn uppercase(
    source: KafkaConfig,
    to: String,
    shutdown: CancellationToken,
) -> Result<TransformSummary, Error> {
    // Each process of the group needs its own transactional id, and keeps it when it restarts.
    let config = TransformConfig::new(source, "uppercase-1");
    let transform = move |message: Message| {
        let destination = to.clone();
        async move {
            let text = std::str::from_utf8(message.payload())
                .map_err(|error| HandlerError::permanent(error.to_string()))?;
            let payload = text.to_uppercase().into();
            Ok(vec![Outgoing {
                destination,
                payload,
                order_key: message.order_key().cloned(),
                ..Outgoing::default()
            }])
        }
    };
    KafkaTransform::new(config)?.run(transform, shutdown).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [brokers, from, to] = &args[..] else { return Err("usage: uppercase BROKERS FROM TO".into()) };
    let shutdown = CancellationToken::new();
    let on_signal = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            on_signal.cancel();
        }
    });
    let source = KafkaConfig::new([brokers], [from], "uppercase");
    let summary = uppercase(source, to.clone(), shutdown).await?;
    println!("{} records transformed", summary.records);
    Ok(())
}
