//! Kafka, with each store and without, on the same broker and in turns with raw loops. What counts are the ratios of one run.
//!
//! ```sh
//! cargo bench -p onceward-bench-kafka -- [PART...] [messages [rounds]]
//! ```
//!
//! | part | ours | against |
//! |---|---|---|
//! | `memory` | the pipeline, store in memory, order by key | single polls, an asynchronous commit per 1,000 |
//! | `redis` | the pipeline with Redis | the same claims and completions on Redis alone, two batches in flight |
//! | `postgres` | the pipeline with Postgres, `deduplicated` | the same on Postgres alone |
//! | `order` | the pipeline in the order of partitions, by `lane_batch`, with Redis and with Postgres | the same in the order of keys |
//! | `position` | `KafkaEffects` into Postgres with effects that cost nothing: what positions cost | polls handed over in batches of 500 |
//! | `effects` | `KafkaEffects` into Postgres, a row for each record | the same rows without Kafka and positions, as many in a transaction |
//! | `both` | the same with keys | `KafkaEffects` without keys |
//! | `transform` | a copy of each record, in transactions of 100 ms | the same copies without transactions |
//!
//! Without a part: all of them.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod effects;
mod pipeline;
mod stage;
mod stores;
mod transform;

use stage::Stage;

const PARTS: [&str; 8] = ["memory", "redis", "postgres", "order", "position", "effects", "both", "transform"];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    // `cargo bench` adds `--bench`.
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let mut numbers = arguments.iter().filter_map(|argument| argument.parse::<usize>().ok());
    let (messages, rounds) = (numbers.next().unwrap_or(300_000), numbers.next().unwrap_or(3));
    let mut parts: Vec<_> =
        arguments.iter().map(String::as_str).filter(|own| own.parse::<usize>().is_err()).collect();
    if parts.is_empty() {
        parts = PARTS.to_vec();
    }
    let stage = Stage::set(messages).await;
    for part in parts {
        match part {
            "memory" => pipeline::memory(&stage, rounds).await,
            "redis" => pipeline::redis(&stage, rounds).await,
            "postgres" => pipeline::postgres(&stage, rounds).await,
            "order" => pipeline::order(&stage, rounds).await,
            "position" => effects::position(&stage, rounds).await,
            "effects" => effects::effects(&stage, rounds).await,
            "both" => effects::both(&stage, rounds).await,
            "transform" => transform::transform(&stage, rounds).await,
            other => panic!("there is no part {other:?}; there are {PARTS:?}"),
        }
    }
}
