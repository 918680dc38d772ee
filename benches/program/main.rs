//! The program, as released, with its handlers, sources and stores on real servers.
//!
//! ```sh
//! cargo build --release -p onceward-cli
//! cargo bench -p onceward-bench-program -- [PART...] [messages [rounds]] [--json]
//! ```
//!
//! | part | what | against |
//! |---|---|---|
//! | `brokers` | `onceward bench`: RabbitMQ (quorum queue) and SQS, each with Redis and with Postgres | the raw loop |
//! | `stdout` | Kafka, 8 partitions, stdout handler, with Redis and with Postgres, in the order of partitions | the same in the order of keys |
//! | `http` | file source, store in memory, HTTP handler with 128 requests at once, and with 50 messages in each | a loop over the same client, with as many requests at once |
//! | `processes` | file source, store in memory: 2 Python processes with `in_flight` 32 and with `batch` 50; `exec` | 2 Python processes with one request each |
//! | `memory` | RabbitMQ, Redis: MiB of the program with 10,000 messages received and not acknowledged | |
//! | `workers` | 2, 4 and 8 programs with a file each and one Redis, also behind a round trip of 1 ms | one program |
//!
//! Without a part: all of them. `ONCEWARD_BENCH_PROGRAM` names another executable than the one of the same build.
#![allow(clippy::unwrap_used)]

mod brokers;
mod http;
mod memory;
mod processes;
mod stage;
mod stdout;
mod workers;

use onceward_test_servers::figures::Figures;
use stage::Stage;

const PARTS: [&str; 6] = ["brokers", "stdout", "http", "processes", "memory", "workers"];

fn main() {
    if std::env::args().nth(1).as_deref() == Some(http::SERVE) {
        return http::serve();
    }
    // An error means that one is installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let figures = Figures::of("program");
    let stage = Stage::set(figures.clone());
    for part in figures.parts(&PARTS) {
        match part {
            "brokers" => brokers::measure(&stage),
            "stdout" => stdout::measure(&stage),
            "http" => http::measure(&stage),
            "processes" => processes::measure(&stage),
            "memory" => memory::measure(&stage),
            "workers" => workers::measure(&stage),
            other => panic!("there is no part {other:?}; there are {PARTS:?}"),
        }
    }
}
