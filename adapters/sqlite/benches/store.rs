//! Measures how many keys a second are claimed and completed: the memory store beside the SQLite one, in batches.
//!
//! Divide 1 s by what it says per item. The SQLite figures are ruled by how fast the disk flushes: two a batch.

#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Duration;

use divan::Bencher;
use divan::counter::ItemsCount;
use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Entropy, Lease};
use onceward::{Fingerprint, Key, MemoryStore, Scope, Store};
use onceward_sqlite::{SqliteConfig, SqliteStore};
use tokio::runtime::Runtime;

const TERMS: ClaimTerms =
    ClaimTerms { lease: Duration::from_secs(60), max_attempts: 5, ttl: Duration::from_secs(7 * 24 * 3_600) };

fn main() {
    divan::main();
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Fresh keys and tokens, as they come out of a source.
struct Source {
    entropy: Entropy,
    next: u64,
}

impl Source {
    fn new() -> Self {
        Self { entropy: Entropy::system(), next: 0 }
    }

    fn batch(&mut self, size: usize) -> Vec<ClaimRequest> {
        (0..size)
            .map(|_| {
                self.next += 1;
                let key = Key::from_bytes(*Fingerprint::of(&self.next.to_be_bytes()).as_bytes());
                ClaimRequest { key, owner: self.entropy.token(), fingerprint: None, generation: 0 }
            })
            .collect()
    }
}

async fn claim_and_complete<S: Store>(store: &S, scope: &Scope, batch: &[ClaimRequest]) {
    let leases = store.claim(scope, &TERMS, batch).await.into_iter().map(|claim| match claim.unwrap() {
        Claim::Claimed(claimed) => claimed.lease,
        other => panic!("expected a claim, got {other:?}"),
    });
    let completion = |lease: Lease| CompleteRequest::new(lease, TERMS.ttl);
    let completions: Vec<CompleteRequest> = leases.map(completion).collect();
    black_box(store.complete(scope, &completions).await);
}

#[divan::bench(args = [1, 100, 256], sample_count = 500)]
fn memory(bencher: Bencher<'_, '_>, size: usize) {
    let (runtime, store, scope) = (runtime(), MemoryStore::new(), Scope::parse("billing").unwrap());
    let mut source = Source::new();
    bencher
        .counter(ItemsCount::new(size))
        .with_inputs(|| source.batch(size))
        .bench_local_values(|batch| runtime.block_on(claim_and_complete(&store, &scope, &batch)));
}

/// A store that holds many keys already: every key is somewhere the processor has not looked for long.
#[divan::bench(args = [1, 100, 256], sample_count = 500)]
fn memory_of_a_million_keys(bencher: Bencher<'_, '_>, size: usize) {
    let (runtime, store, scope) = (runtime(), MemoryStore::new(), Scope::parse("billing").unwrap());
    let mut source = Source::new();
    for _ in 0..1_000 {
        runtime.block_on(claim_and_complete(&store, &scope, &source.batch(1_000)));
    }
    bencher
        .counter(ItemsCount::new(size))
        .with_inputs(|| source.batch(size))
        .bench_local_values(|batch| runtime.block_on(claim_and_complete(&store, &scope, &batch)));
}

#[divan::bench(args = [1, 100, 256], sample_count = 200, sample_size = 1)]
fn sqlite(bencher: Bencher<'_, '_>, size: usize) {
    let (runtime, scope) = (runtime(), Scope::parse("billing").unwrap());
    let directory = tempfile::tempdir().unwrap();
    let store =
        runtime.block_on(SqliteStore::open(SqliteConfig::new(directory.path().join("onceward.db")))).unwrap();
    let mut source = Source::new();
    bencher
        .counter(ItemsCount::new(size))
        .with_inputs(|| source.batch(size))
        .bench_local_values(|batch| runtime.block_on(claim_and_complete(&store, &scope, &batch)));
}

/// Eight callers at once, each with batches of its own: they share transactions.
#[divan::bench(args = [1, 32], sample_count = 200, sample_size = 1)]
fn sqlite_eight_callers(bencher: Bencher<'_, '_>, size: usize) {
    let (runtime, scope) = (runtime(), Scope::parse("billing").unwrap());
    let directory = tempfile::tempdir().unwrap();
    let store =
        runtime.block_on(SqliteStore::open(SqliteConfig::new(directory.path().join("onceward.db")))).unwrap();
    let mut source = Source::new();
    bencher
        .counter(ItemsCount::new(size * 8))
        .with_inputs(|| (0..8).map(|_| source.batch(size)).collect::<Vec<_>>())
        .bench_local_values(|batches| {
            runtime.block_on(async {
                let mut callers = tokio::task::JoinSet::new();
                for batch in batches {
                    let (store, scope) = (store.clone(), scope.clone());
                    callers.spawn(async move { claim_and_complete(&store, &scope, &batch).await });
                }
                callers.join_all().await
            })
        });
}
