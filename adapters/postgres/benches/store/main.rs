//! Figures of the store on a real server of its own: `cargo bench -p onceward-postgres --bench store`, all parts but the last, or
//! those that are named: `-- [keys] [duplicates] [handler] [batch] [pipeline] [bytes] [expiry] [messages [rounds]] [--json]`. Ratios within one run hold; absolute figures are those
//! of a disk. `expiry` takes an hour: `ONCEWARD_EXPIRY_ROWS` and `ONCEWARD_EXPIRY_TURN` (seconds) make it shorter.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod expiry;
mod handler;
#[path = "../../tests/support/expiry.rs"]
mod rows;

use std::time::{Duration, Instant};

use onceward::adapter::StoreAdmin;
use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Entropy, KeyState};
use onceward::{Error, Key, Scope, Store};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::figures::Figures;
use onceward_test_servers::postgres::Postgres;

const TTL: Duration = Duration::from_secs(3_600);

const TERMS: ClaimTerms = ClaimTerms { lease: Duration::from_secs(600), ttl: TTL, max_attempts: 5 };

fn requests(scope: &Scope, name: &str, size: usize) -> Vec<ClaimRequest> {
    let mut entropy = Entropy::system();
    let request = |n| ClaimRequest {
        key: Key::of(scope, format!("{name} {n}")).unwrap(),
        owner: entropy.token(),
        fingerprint: None,
        generation: 0,
    };
    (0..size).map(request).collect()
}

fn completion(claim: Result<Claim, Error>) -> CompleteRequest {
    match claim.unwrap() {
        Claim::Claimed(claimed) => CompleteRequest::new(claimed.lease, TTL),
        other => panic!("{other:?}"),
    }
}

/// Claims `size` new keys, and answers what completes them.
async fn claims(store: &PgStore, scope: &Scope, name: &str, size: usize) -> Vec<CompleteRequest> {
    store.claim(scope, &TERMS, &requests(scope, name, size)).await.into_iter().map(completion).collect()
}

/// As [`claims`], for transactions.
pub(crate) async fn claims_for_commits(
    store: &PgStore,
    scope: &Scope,
    name: &str,
    size: usize,
) -> Vec<CompleteRequest> {
    let claims = store.claim_for_commit(scope, &TERMS, &requests(scope, name, size)).await;
    claims.into_iter().map(completion).collect()
}

/// Claims and completes `batches` batches of `size` keys, one after the other, and answers how many keys a second.
async fn claim_and_complete(store: &PgStore, name: &str, batches: usize, size: usize) -> f64 {
    let scope = Scope::parse(name).unwrap();
    let began = Instant::now();
    for batch in 0..batches {
        let completions = claims(store, &scope, &batch.to_string(), size).await;
        for done in store.complete(&scope, &completions).await {
            assert_eq!(done.unwrap(), Completion::Completed);
        }
    }
    let count = batches * size;
    assert_eq!(store.stats(&scope).await.unwrap().get(KeyState::Completed), count as u64);
    count as f64 / began.elapsed().as_secs_f64()
}

async fn keys(figures: &Figures, store: &PgStore) {
    let count = figures.messages(50_000);
    let single = claim_and_complete(store, "single", count.div_ceil(100), 1).await;
    let report = |how: &str, rate: f64| figures.report("claim + complete", count, (how, &[rate]), &[]);
    report("one by one, one in flight", single);
    for size in [100, 256, 1_000] {
        let rate = claim_and_complete(store, &format!("batch-{size}"), count.div_ceil(size), size).await;
        report(&format!("batches of {size}, one in flight"), rate);
    }
    let (one, two) = tokio::join!(
        claim_and_complete(store, "two-a", count.div_ceil(512), 256),
        claim_and_complete(store, "two-b", count.div_ceil(512), 256)
    );
    report("batches of 256, two in flight", one + two);
}

/// Claims completed keys in batches of `size`, one after the other, and answers how many a second.
async fn claim_duplicates(store: &PgStore, name: &str, batches: usize, size: usize) -> f64 {
    let scope = Scope::parse(name).unwrap();
    let requests: Vec<_> = (0..batches).map(|batch| requests(&scope, &batch.to_string(), size)).collect();
    let began = Instant::now();
    for batch in &requests {
        for claim in store.claim(&scope, &TERMS, batch).await {
            assert!(matches!(claim, Ok(Claim::Completed { .. })), "{claim:?}");
        }
    }
    (batches * size) as f64 / began.elapsed().as_secs_f64()
}

async fn duplicates(figures: &Figures, store: &PgStore) {
    const SIZE: usize = 256;
    let (count, rounds) = (figures.messages(50_000), figures.rounds(3));
    let batches = count.div_ceil(2 * SIZE);
    for name in ["duplicates-a", "duplicates-b"] {
        claim_and_complete(store, name, batches, SIZE).await;
    }
    let mut rates: [Vec<f64>; 2] = Default::default();
    for _ in 0..rounds {
        rates[0].push(claim_duplicates(store, "duplicates-a", batches, SIZE).await);
        let (one, two) = tokio::join!(
            claim_duplicates(store, "duplicates-a", batches, SIZE),
            claim_duplicates(store, "duplicates-b", batches, SIZE)
        );
        rates[1].push(one + two);
    }
    let variants = [("batches of 256, two in flight", &rates[1][..])];
    figures.report("duplicates", count, ("batches of 256, one in flight", &rates[0]), &variants);
}

/// A number from the environment.
fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(usual)
}

#[tokio::main]
async fn main() {
    const USUAL: [&str; 6] = ["keys", "duplicates", "handler", "batch", "pipeline", "bytes"];
    let figures = Figures::of("postgres");
    let server = Postgres::start();
    let store = PgStore::open(PgConfig::new(server.url("postgres"))).await.unwrap();
    server.sql("CREATE TABLE effects (n bigint NOT NULL, payload text NOT NULL)");
    for part in figures.parts(&USUAL) {
        if !figures.is_json() {
            println!("-- {part}");
        }
        match part {
            "keys" => keys(&figures, &store).await,
            "duplicates" => duplicates(&figures, &store).await,
            "handler" => {
                for workers in [1, 8] {
                    handler::transactions(&figures, &server, &store, workers).await;
                }
            }
            "batch" => handler::batches(&figures, &server, &store).await,
            "pipeline" => handler::pipelines(&figures, &server, &store).await,
            "bytes" => {
                if server.sql("SELECT count(*) FROM onceward.keys") == "0" {
                    keys(&figures, &store).await;
                }
                server.sql("VACUUM FULL onceward.keys");
                let bytes = "SELECT pg_total_relation_size('onceward.keys') / count(*) FROM onceward.keys";
                println!("bytes a completed key, indexes included, after VACUUM FULL: {}", server.sql(bytes));
            }
            "expiry" => expiry::measure().await,
            other => panic!("there is no part {other}; there are {} and expiry", USUAL.join(", ")),
        }
    }
}
