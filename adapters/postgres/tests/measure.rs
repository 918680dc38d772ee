//! Figures of the store on a real server, printed on request: `cargo test --release -p onceward-postgres --test measure --
//! --ignored --nocapture`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Entropy, KeyState};
use onceward::{Key, Scope, Store};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;

const TTL: Duration = Duration::from_secs(3_600);

/// Claims and completes `batches` batches of `size` keys, one after the other, and answers how many keys a second.
async fn claim_and_complete(store: &PgStore, name: &str, batches: usize, size: usize) -> f64 {
    let scope = Scope::parse(name).unwrap();
    let terms = ClaimTerms { lease: Duration::from_secs(60), ttl: TTL, max_attempts: 5 };
    let mut entropy = Entropy::system();
    let began = Instant::now();
    for batch in 0..batches {
        let request = |n| ClaimRequest {
            key: Key::of(&scope, format!("{batch} {n}")).unwrap(),
            owner: entropy.token(),
            fingerprint: None,
            generation: 0,
        };
        let requests: Vec<_> = (0..size).map(request).collect();
        let claims = store.claim(&scope, &terms, &requests).await;
        let completion = |claim: Result<Claim, _>| match claim.unwrap() {
            Claim::Claimed(claimed) => CompleteRequest {
                lease: claimed.lease,
                result: None,
                fingerprint: None,
                generation: 0,
                ttl: TTL,
            },
            other => panic!("{other:?}"),
        };
        let completions: Vec<_> = claims.into_iter().map(completion).collect();
        for done in store.complete(&scope, &completions).await {
            assert_eq!(done.unwrap(), Completion::Completed);
        }
    }
    let count = batches * size;
    assert_eq!(store.stats(&scope).await.unwrap().get(KeyState::Completed), count as u64);
    count as f64 / began.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "figures, not a test: run it alone"]
async fn claims_and_completions_a_second_and_bytes_a_key() {
    let server = Postgres::start();
    let store = PgStore::connect(PgConfig::from_url(&server.url("postgres")).unwrap()).await.unwrap();
    let single = claim_and_complete(&store, "single", 500, 1).await;
    println!("one by one, one in flight: {single:.0} claim + complete/s");
    for size in [100, 256, 1_000] {
        let name = format!("batch-{size}");
        let rate = claim_and_complete(&store, &name, 50_000 / size, size).await;
        println!("batches of {size}, one in flight: {rate:.0} claim + complete/s");
    }
    let (one, two) = tokio::join!(
        claim_and_complete(&store, "two-a", 100, 256),
        claim_and_complete(&store, "two-b", 100, 256)
    );
    println!("batches of 256, two in flight: {:.0} claim + complete/s", one + two);
    server.sql("VACUUM FULL onceward.keys");
    let bytes = "SELECT pg_total_relation_size('onceward.keys') / count(*) FROM onceward.keys";
    println!("bytes a completed key, indexes included, after VACUUM FULL: {}", server.sql(bytes));
}
