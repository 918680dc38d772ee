//! Compares, in turns on the same SQS-compatible server, a raw loop of the SDK (so many pollers that receive ten messages,
//! then delete them in one batch) with the pipeline with the memory store and as many pollers. What counts is the ratio.
//!
//! ```sh
//! cargo bench -p onceward-sqs --bench throughput -- [messages [rounds]] [--json]
//! ```
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry as Delete;
use onceward::telemetry::Counter;
use onceward::{Handled, KeySource, MemoryStore, Message, Outgoing, Pipeline, Publisher, Scope, handler_fn};
use onceward_sqs::{SqsConsumer, SqsPublisher, SqsQueueConfig};
use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::figures::Figures;

const PAYLOAD_BYTES: usize = 256;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let figures = Figures::of("sqs");
    let (messages, rounds) = (figures.messages(20_000), figures.rounds(5));
    let server = ElasticMq::start();
    let client = support::client(server.port());
    for pollers in [1, 4, 16] {
        let url = support::create(&client, "bench").await;
        let (mut raws, mut pipelines) = (Vec::new(), Vec::new());
        // The first round warms the server up.
        for round in 0..=rounds {
            fill(&client, &url, messages).await;
            let raw = per_second(messages, raw(&client, &url, messages, pollers).await);
            fill(&client, &url, messages).await;
            let pipeline = per_second(messages, pipeline(&client, &url, messages, pollers).await);
            if round > 0 {
                raws.push(raw);
                pipelines.push(pipeline);
            }
        }
        let part = format!("{pollers} pollers");
        figures.report(&part, messages, ("raw", &raws), &[("pipeline", &pipelines)]);
    }
}

fn per_second(messages: usize, took: Duration) -> f64 {
    messages as f64 / took.as_secs_f64()
}

async fn fill(client: &Client, url: &str, messages: usize) {
    let publisher = SqsPublisher::from_client(client.clone());
    let message = |_| Outgoing {
        destination: url.to_owned(),
        payload: vec![b'x'; PAYLOAD_BYTES].into(),
        ..Outgoing::default()
    };
    let batch: Vec<_> = (0..messages).map(message).collect();
    for sent in publisher.publish(&batch).await {
        sent.unwrap();
    }
}

async fn raw(client: &Client, url: &str, messages: usize, pollers: usize) -> Duration {
    let (started, handled) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let polls = (0..pollers).map(|_| {
        let (client, url, handled) = (client.clone(), url.to_owned(), Arc::clone(&handled));
        tokio::spawn(async move {
            while handled.load(Ordering::Relaxed) < messages {
                let receive = client.receive_message().queue_url(&url).max_number_of_messages(10);
                let received =
                    receive.wait_time_seconds(1).send().await.unwrap().messages.unwrap_or_default();
                let delete = |(number, message): (usize, &aws_sdk_sqs::types::Message)| {
                    assert_eq!(std::hint::black_box(message.body()).unwrap().len(), PAYLOAD_BYTES);
                    let handle = message.receipt_handle().unwrap();
                    Delete::builder().id(number.to_string()).receipt_handle(handle).build().unwrap()
                };
                let entries: Vec<_> = received.iter().enumerate().map(delete).collect();
                if !entries.is_empty() {
                    let count = entries.len();
                    let delete = client.delete_message_batch().queue_url(&url).set_entries(Some(entries));
                    assert!(delete.send().await.unwrap().failed.is_empty());
                    handled.fetch_add(count, Ordering::Relaxed);
                }
            }
        })
    });
    let polls: Vec<_> = polls.collect();
    let took = ended(started, || handled.load(Ordering::Relaxed) >= messages).await;
    for poll in polls {
        poll.await.unwrap();
    }
    took
}

async fn pipeline(client: &Client, url: &str, messages: usize, pollers: usize) -> Duration {
    async fn handle(_: (), message: Message) -> Handled {
        assert_eq!(std::hint::black_box(message.payload()).len(), PAYLOAD_BYTES);
        Ok(())
    }
    let started = Instant::now();
    let mut queue = SqsQueueConfig::new(url);
    queue.pollers = pollers;
    queue.wait = Duration::from_secs(1);
    let consumer = SqsConsumer::from_client(client.clone(), queue).await.unwrap();
    let pipeline = Pipeline::builder(Scope::parse("bench").unwrap(), consumer, Arc::new(MemoryStore::new()))
        .keys([KeySource::MessageId])
        .park_exhausted()
        .handler(handler_fn((), handle))
        .unwrap();
    let counters = pipeline.counters();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(pipeline.run(shutdown.clone()));
    ended(started, || counters.get(Counter::Handled) >= messages as u64).await;
    // As in the raw loop, the last delete is part of it.
    support::until(Duration::from_secs(60), "all are deleted", async || {
        support::depth(client, url).await == (0, 0)
    })
    .await;
    let took = started.elapsed();
    shutdown.cancel();
    let summary = running.await.unwrap().unwrap();
    assert_eq!((summary.handled(), summary.received()), (messages as u64, messages as u64));
    took
}

async fn ended(started: Instant, mut so: impl FnMut() -> bool) -> Duration {
    while !so() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    started.elapsed()
}
