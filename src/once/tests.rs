//! What `once` promises to a loop of one's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Deduplicator, Once, OnceConfig, OnceError};
use crate::key::{Key, Scope};
use crate::store::{KeyState, MemoryStore, Store};

fn scope() -> Scope {
    Scope::parse("orders").unwrap()
}

fn key(text: &str) -> Key {
    Key::of(&scope(), text).unwrap()
}

fn dedup(store: &Arc<MemoryStore>) -> Deduplicator {
    let config = OnceConfig { lease: Duration::from_secs(3), max_attempts: 2, ..OnceConfig::default() };
    Deduplicator::new(scope(), Arc::clone(store), config)
}

async fn state(store: &Arc<MemoryStore>, key: &Key) -> Option<KeyState> {
    store.inspect(&scope(), key).await.unwrap().map(|record| record.state)
}

#[tokio::test(start_paused = true)]
async fn a_second_call_is_a_duplicate_and_gets_what_was_kept() {
    let store = Arc::new(MemoryStore::new());
    let dedup = dedup(&store);
    let first = dedup
        .once(&key("7"), async |claim| {
            claim.keep("receipt");
            Ok::<_, String>(claim.attempt())
        })
        .await
        .unwrap();
    assert!(matches!(first, Once::Ran(1)) && first.may_ack());
    let second =
        dedup.once(&key("7"), async |_| -> Result<(), String> { panic!("ran twice") }).await.unwrap();
    let Once::Duplicate { result } = &second else { panic!("{second:?}") };
    assert_eq!(result.as_deref(), Some(&b"receipt"[..]));
    assert!(second.may_ack());
}

#[tokio::test(start_paused = true)]
async fn a_call_beside_a_running_one_may_not_be_acked() {
    let store = Arc::new(MemoryStore::new());
    let dedup = dedup(&store);
    let outer = dedup
        .once(&key("7"), async |_| {
            let inner = dedup.once(&key("7"), async |_| Ok::<_, String>(())).await.unwrap();
            assert!(matches!(inner, Once::InProgress { .. }) && !inner.may_ack());
            Ok::<_, String>(())
        })
        .await;
    assert!(matches!(outer, Ok(Once::Ran(()))));
}

#[tokio::test(start_paused = true)]
async fn a_failure_uses_up_an_attempt_and_the_last_one_asks_for_a_dead_letter() {
    let store = Arc::new(MemoryStore::new());
    let dedup = dedup(&store);
    for attempt in 1..=2 {
        let failed = dedup
            .once(&key("7"), async |claim| {
                assert_eq!(claim.attempt(), attempt);
                Err::<(), _>("no")
            })
            .await;
        assert!(matches!(failed, Err(OnceError::Failed("no"))));
    }
    let last =
        dedup.once(&key("7"), async |_| -> Result<(), String> { panic!("a third run") }).await.unwrap();
    assert!(!last.may_ack());
    let Once::Exhausted(exhausted) = last else { panic!("not exhausted") };
    assert_eq!((exhausted.details().attempts, exhausted.details().error.as_deref()), (2, Some("no")));
    exhausted.dead_lettered().await.unwrap();
    let after = dedup.once(&key("7"), async |_| Ok::<_, String>(())).await.unwrap();
    assert!(matches!(after, Once::Dead) && after.may_ack());
}

#[tokio::test(start_paused = true)]
async fn a_run_longer_than_its_lease_is_renewed_and_stays_alone() {
    let store = Arc::new(MemoryStore::new());
    let dedup = dedup(&store);
    let ran = dedup
        .once(&key("7"), async |claim| {
            tokio::time::sleep(Duration::from_secs(18)).await;
            assert!(!claim.cancellation().is_cancelled());
            let other = dedup.once(&key("7"), async |_| Ok::<_, String>(())).await.unwrap();
            assert!(matches!(other, Once::InProgress { .. }));
            Ok::<_, String>(())
        })
        .await;
    assert!(matches!(ran, Ok(Once::Ran(()))));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_frees_the_key_and_counts_an_attempt() {
    let store = Arc::new(MemoryStore::new());
    let dedup = dedup(&store);
    let started = Arc::new(AtomicU32::new(0));
    let call = {
        let (dedup, started) = (dedup.clone(), Arc::clone(&started));
        tokio::spawn(async move {
            let key = key("7");
            let run = dedup.once(&key, async |_| {
                started.fetch_add(1, Ordering::Relaxed);
                std::future::pending::<Result<(), String>>().await
            });
            let _ = run.await;
        })
    };
    while started.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(state(&store, &key("7")).await, Some(KeyState::Pending));
    call.abort();
    while state(&store, &key("7")).await == Some(KeyState::Pending) {
        tokio::task::yield_now().await;
    }
    let next = dedup.once(&key("7"), async |claim| Ok::<_, String>(claim.attempt())).await.unwrap();
    assert!(matches!(next, Once::Ran(2)), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_lost_its_lease_is_told_and_not_acked() {
    let store = Arc::new(MemoryStore::new());
    let dedup = dedup(&store);
    let (this, key) = (key("7"), key("7"));
    let outcome = dedup
        .once(&this, async |claim| {
            // Somebody forgets the key, and another worker takes it.
            store.forget(&scope(), &[key]).await.remove(0).unwrap();
            let other = super::Deduplicator::new(scope(), Arc::clone(&store), OnceConfig::default());
            let (sender, held) = tokio::sync::oneshot::channel();
            tokio::spawn(async move {
                let _ = other
                    .once(&key, async |_| {
                        let _ = sender.send(());
                        std::future::pending::<Result<(), String>>().await
                    })
                    .await;
            });
            held.await.unwrap();
            claim.cancellation().cancelled().await;
            Ok::<_, String>(())
        })
        .await;
    assert!(matches!(outcome, Err(OnceError::Completion(_))), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn another_payload_under_the_same_key_is_a_mismatch() {
    let store = Arc::new(MemoryStore::new());
    let dedup = dedup(&store);
    let first = dedup.once_for(&key("7"), b"pay 1", async |_| Ok::<_, String>(())).await.unwrap();
    let copy = dedup.once_for(&key("7"), b"pay 1", async |_| Ok::<_, String>(())).await.unwrap();
    let other = dedup.once_for(&key("7"), b"pay 2", async |_| Ok::<_, String>(())).await.unwrap();
    assert!(matches!((first, copy), (Once::Ran(()), Once::Duplicate { .. })));
    assert!(matches!(other, Once::Mismatch) && !other.may_ack());
}

#[tokio::test(start_paused = true)]
async fn calls_that_come_together_all_get_their_own_answer() {
    let store = Arc::new(MemoryStore::new());
    let dedup = dedup(&store);
    let runs = Arc::new(AtomicU32::new(0));
    let calls = (0..100).map(|number| {
        let (dedup, runs) = (dedup.clone(), Arc::clone(&runs));
        tokio::spawn(async move {
            let key = key(&(number % 50).to_string());
            let run = async |_: &super::HeldClaim| {
                runs.fetch_add(1, Ordering::Relaxed);
                Ok::<_, String>(())
            };
            dedup.once(&key, run).await.unwrap()
        })
    });
    for call in calls.collect::<Vec<_>>() {
        let once = call.await.unwrap();
        assert!(matches!(once, Once::Ran(()) | Once::Duplicate { .. } | Once::InProgress { .. }), "{once:?}");
    }
    assert_eq!(runs.load(Ordering::Relaxed), 50);
}
