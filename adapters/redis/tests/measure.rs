//! Measurements: memory per key and keys per second. They take long and need an otherwise idle machine:
//! `cargo test --release -p onceward-redis --test measure -- --ignored --nocapture --test-threads 1`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::store::{Claim, ClaimRequest, CompleteRequest, Entropy};
use onceward::{Fingerprint, Store};
use onceward_redis::{RedisConfig, RedisLayout, RedisStore};
use onceward_test_servers::redis::Redis;
use support::{ConfigExt, completion, config, key, open, scope, terms};

fn server() -> Redis {
    Redis::start_with(&["--appendonly", "no"])
}

async fn fill(store: &RedisStore, keys: u64, fingerprint: bool, prefix: u64) {
    let mut entropy = Entropy::system();
    let numbers: Vec<u64> = (0..keys).collect();
    for numbers in numbers.chunks(500) {
        let requests: Vec<ClaimRequest> = numbers
            .iter()
            .map(|n| ClaimRequest {
                key: key(prefix + n),
                owner: entropy.token(),
                fingerprint: fingerprint.then(|| Fingerprint::of(&n.to_be_bytes())),
                generation: 0,
            })
            .collect();
        let completions: Vec<CompleteRequest> = store
            .claim(&scope(), &terms(), &requests)
            .await
            .into_iter()
            .map(|claim| match claim.unwrap() {
                Claim::Claimed(claimed) => completion(claimed.lease),
                other => panic!("expected a claim, got {other:?}"),
            })
            .collect();
        let done = store.complete(&scope(), &completions).await;
        assert!(done.into_iter().all(|done| done.is_ok()));
    }
}

/// Bytes per key, from `INFO memory` before and after.
async fn bytes_per_key(keys: u64, fingerprint: bool, prefix: &str, layout: RedisLayout) -> f64 {
    let server = server();
    let store = open(&config(&server.url()).prefix(prefix).layout(layout));
    fill(&store, 1, fingerprint, 1 << 40).await;
    let before: u64 = server.info("used_memory_dataset").parse().unwrap();
    let overhead = |server: &Redis| -> u64 { server.info("used_memory_overhead").parse().unwrap() };
    let before = before + overhead(&server);
    fill(&store, keys, fingerprint, 0).await;
    // The hash table has been resized, and the buffers of the client are small again.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after: u64 = server.info("used_memory_dataset").parse::<u64>().unwrap() + overhead(&server);
    (after - before) as f64 / keys as f64
}

#[tokio::test]
#[ignore = "a measurement"]
async fn memory_of_a_completed_key() {
    for keys in [200_000, 250_000, 1_000_000] {
        println!(
            "{keys:>9} keys: {:.1} bytes each",
            bytes_per_key(keys, false, "ow", RedisLayout::Plain).await
        );
    }
    println!(
        "{:>9} keys with a fingerprint: {:.1} bytes each",
        1_000_000,
        bytes_per_key(1_000_000, true, "ow", RedisLayout::Plain).await
    );
    println!(
        "{:>9} keys, prefix of 8: {:.1} bytes each",
        1_000_000,
        bytes_per_key(1_000_000, false, "onceward", RedisLayout::Plain).await
    );
    for fingerprint in [false, true] {
        let bytes = bytes_per_key(1_000_000, fingerprint, "ow", RedisLayout::Compact).await;
        println!("1000000 keys, compact, with a fingerprint: {fingerprint}: {bytes:.1} bytes each");
        assert!(bytes <= 24.0);
    }
}

const KEYS: u64 = 200_000;

/// Claims and completes `KEYS` keys in concurrent batches, and returns keys per second.
async fn claim_and_complete(url: &str, size: u64, in_flight: u64, round: u64) -> f64 {
    let store = open(&config(url));
    fill(&store, 1_000, false, (1 << 40) + round * 10_000).await;
    let since = Instant::now();
    let keys = if size == 1 { KEYS / 20 } else { KEYS };
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..in_flight {
        let store = store.clone();
        lanes.spawn(async move {
            let (scope, terms) = (scope(), terms());
            let mut entropy = Entropy::system();
            let share = keys / in_flight;
            let first = round * 10_000_000 + lane * share;
            let mut n = first;
            while n < first + share {
                let requests: Vec<ClaimRequest> = (n..(n + size).min(first + share))
                    .map(|n| ClaimRequest {
                        key: key(n),
                        owner: entropy.token(),
                        fingerprint: None,
                        generation: 0,
                    })
                    .collect();
                let completions: Vec<CompleteRequest> = store
                    .claim(&scope, &terms, &requests)
                    .await
                    .into_iter()
                    .map(|claim| support::completion(support::lease_of(claim.unwrap())))
                    .collect();
                let done = store.complete(&scope, &completions).await;
                assert!(done.into_iter().all(|done| done.is_ok()));
                n += size;
            }
        });
    }
    lanes.join_all().await;
    keys as f64 / since.elapsed().as_secs_f64()
}

/// Commands per second of a bare client with `SET key value NX PX ttl`, `size` per pipeline, two concurrent pipelines.
async fn bare(url: &str, size: u64, round: u64) -> f64 {
    let client = redis::Client::open(url).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let since = Instant::now();
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..2 {
        let mut connection = connection.clone();
        lanes.spawn(async move {
            let share = KEYS / 2;
            let first = (1 << 50) + round * 10_000_000 + lane * share;
            let mut n = first;
            while n < first + share {
                let mut pipeline = redis::pipe();
                for n in n..n + size {
                    pipeline
                        .cmd("SET")
                        .arg(key(n).as_bytes())
                        .arg("1")
                        .arg("NX")
                        .arg("PX")
                        .arg(3_600_000)
                        .ignore();
                }
                pipeline.exec_async(&mut connection).await.unwrap();
                n += size;
            }
        });
    }
    lanes.join_all().await;
    KEYS as f64 / since.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn keys_a_second() {
    let server = Arc::new(server());
    let url = server.url();
    for round in 0..3 {
        let limit = bare(&url, 500, round).await;
        println!("round {round}: bare SET NX, pipelines of 500, two in flight: {limit:.0} commands/s");
        for (number, (size, in_flight)) in
            [(1, 1), (1, 2), (100, 1), (100, 2), (256, 1), (256, 2), (500, 1), (500, 2), (500, 4)]
                .into_iter()
                .enumerate()
        {
            let speed = claim_and_complete(&url, size, in_flight, round * 100 + number as u64).await;
            println!(
                "  batches of {size:>3}, {in_flight} in flight: {speed:>8.0} claim + complete/s, {:.2} of the bare commands",
                2.0 * speed / limit
            );
        }
        // The time within the server, independent of the load on the machine.
        println!("  the server: {}", server.info("cmdstat_evalsha"));
        server.cli(&["FLUSHALL"]);
        server.cli(&["CONFIG", "RESETSTAT"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn keys_a_second_in_a_cluster() {
    let cluster = onceward_test_servers::redis::RedisCluster::start(3);
    let store = open(&RedisConfig::cluster(cluster.urls()));
    fill(&store, 1_000, false, 1 << 40).await;
    let since = Instant::now();
    fill(&store, 100_000, false, 0).await;
    println!(
        "cluster of 3, batches of 500, one in flight: {:.0} claim + complete/s",
        100_000.0 / since.elapsed().as_secs_f64()
    );
}
