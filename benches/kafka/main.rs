//! Kafka, with each store and without, on the same broker and in turns with raw loops. What counts are the ratios of one run.
//!
//! ```sh
//! cargo bench -p onceward-bench-kafka -- [PART...] [messages [rounds]] [--json]
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
//! Without a part: all of them. All variants allocate with mimalloc, as the program does.
#![allow(clippy::unwrap_used)]

mod effects;
mod pipeline;
mod stage;
mod stores;
mod transform;

use onceward_test_servers::figures::Figures;
use stage::Stage;

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PARTS: [&str; 8] = ["memory", "redis", "postgres", "order", "position", "effects", "both", "transform"];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let figures = Figures::of("kafka");
    let rounds = figures.rounds(3);
    let stage = Stage::set(figures.clone()).await;
    for part in figures.parts(&PARTS) {
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
