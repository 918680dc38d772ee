//! Copies of records to another topic, with transactions and without.

use std::time::Duration;

use onceward::{Message, Outgoing};
use onceward_kafka_transactions::{KafkaTransform, TransformConfig};
use tokio_util::sync::CancellationToken;

use crate::stage::{First, Stage, per_second};

pub(crate) async fn transform(stage: &Stage, rounds: usize) {
    let (mut plain, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        plain.push(stage.raw(&format!("copy-{round}"), Some("out")));
        ours.push(run(stage, &format!("transform-{round}")).await);
    }
    stage.report("transform", ("copies without transactions", &plain), &[("transactions of 100 ms", &ours)]);
}

async fn run(stage: &Stage, group: &str) -> f64 {
    let mut config = TransformConfig::new(stage.source(group), group);
    config.batch_records = 100_000;
    let first = First::default();
    let noted = First::clone(&first);
    let copy = move |message: Message| {
        noted.get_or_init(std::time::Instant::now);
        let (destination, payload) = ("out".to_owned(), message.payload().clone());
        async move { Ok(vec![Outgoing { destination, payload, ..Outgoing::default() }]) }
    };
    let shutdown = CancellationToken::new();
    let transform = KafkaTransform::new(config).unwrap();
    let running = tokio::spawn(transform.run(copy, shutdown.clone()));
    while stage.committed(group) < stage.messages {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rate = per_second(stage.messages, *first.get().unwrap());
    shutdown.cancel();
    running.await.unwrap().unwrap();
    rate
}
