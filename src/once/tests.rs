//! Checks the guarantees of `once` for a caller's own loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Deduplicator, Once, OnceConfig, OnceError};
use crate::error::ErrorKind;
use crate::key::{Key, Scope};
use crate::store::{Expiring, KeyState, MemoryStore, Reason, StoreAdmin};
use crate::telemetry::Counter;
use crate::testing::{Fault, FaultyStore, Operation};

fn scope() -> Scope {
    Scope::parse("orders").unwrap()
}

fn key(text: &str) -> Key {
    Key::of(&scope(), text).unwrap()
}

fn dedup(store: &Arc<MemoryStore>) -> Deduplicator {
    let config = OnceConfig { lease: Duration::from_secs(3), max_attempts: 2, ..OnceConfig::default() };
    Deduplicator::new(scope(), Arc::clone(store), config).unwrap()
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
            // An operator forgets the key, and another worker takes it.
            store.forget(&scope(), &[key]).await.remove(0).unwrap();
            let other = super::Deduplicator::new(scope(), Arc::clone(&store), OnceConfig::default()).unwrap();
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

const SECOND: Duration = Duration::from_secs(1);

/// Two deduplicators as in two processes: the first one's way to the store has faults.
fn two(lease: Duration) -> (FaultyStore<MemoryStore>, Deduplicator, Deduplicator) {
    let memory = MemoryStore::new();
    let faulty = FaultyStore::new(memory.clone());
    let config = || OnceConfig { lease, max_attempts: 2, ..OnceConfig::default() };
    let first = Deduplicator::new(scope(), Arc::new(faulty.clone()), config()).unwrap();
    let second = Deduplicator::new(scope(), Arc::new(memory), config()).unwrap();
    (faulty, first, second)
}

/// How many closures run at once, and how many did at most.
#[derive(Default)]
struct Together {
    now: AtomicU32,
    most: AtomicU32,
    runs: AtomicU32,
}

impl Together {
    async fn run(&self, length: Duration) -> Result<(), String> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        tokio::time::sleep(length).await;
        self.now.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_reply_comes_after_its_lease_starts_no_second_closure() {
    let (faulty, first, second) = two(2 * SECOND);
    let together = Arc::new(Together::default());
    faulty.next(Operation::Claim, Fault::ReplyLate(Duration::from_millis(2400)));
    let late = {
        let together = Arc::clone(&together);
        tokio::spawn(async move { first.once(&key("7"), async |_| together.run(5 * SECOND).await).await })
    };
    tokio::time::sleep(Duration::from_millis(2050)).await;
    let other = second.once(&key("7"), async |_| together.run(5 * SECOND).await).await.unwrap();
    assert!(matches!(other, Once::Ran(())));
    let late = late.await.unwrap().unwrap();
    assert!(matches!(late, Once::InProgress { .. }) && !late.may_ack(), "{late:?}");
    assert_eq!((together.most.load(Ordering::Relaxed), together.runs.load(Ordering::Relaxed)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_counts_from_when_the_claim_was_sent() {
    let (faulty, first, _) = two(5 * SECOND);
    let begun = tokio::time::Instant::now();
    faulty.next(Operation::Claim, Fault::ReplyLate(Duration::from_millis(1500)));
    faulty.refuse(Operation::Renew, ErrorKind::Unavailable);
    let ran = first
        .once(&key("7"), async |claim| {
            claim.cancellation().cancelled().await;
            Ok::<_, String>(begun.elapsed())
        })
        .await;
    let Ok(Once::Ran(cancelled)) = ran else { panic!("{ran:?}") };
    assert!(cancelled < 5 * SECOND, "cancelled after {cancelled:?}, when another may run already");
    assert_eq!(first.counters().get(Counter::LeasesLost), 1);
}

#[tokio::test(start_paused = true)]
async fn a_claim_with_little_lease_left_is_renewed_before_its_closure_starts() {
    let (faulty, first, second) = two(4 * SECOND);
    faulty.next(Operation::Claim, Fault::ReplyLate(3 * SECOND));
    let ran = first
        .once(&key("7"), async |claim| {
            // Well past the lease as it was claimed.
            tokio::time::sleep(2 * SECOND).await;
            let other = second.once(&key("7"), async |_| Ok::<_, String>(())).await.unwrap();
            Ok::<_, String>((claim.cancellation().is_cancelled(), matches!(other, Once::InProgress { .. })))
        })
        .await;
    assert!(matches!(ran, Ok(Once::Ran((false, true)))), "{ran:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_kept_while_its_completion_is_refused_whatever_the_store_calls_it() {
    for kind in [
        ErrorKind::Denied,
        ErrorKind::Config,
        ErrorKind::Internal,
        ErrorKind::Unsupported,
        ErrorKind::Timeout,
    ] {
        let (faulty, first, second) = two(3 * SECOND);
        faulty.refuse(Operation::Complete, kind);
        let call = tokio::spawn(async move { first.once(&key("7"), async |_| Ok::<_, String>(())).await });
        tokio::time::sleep(30 * SECOND).await;
        let other = second.once(&key("7"), async |_| -> Result<(), String> { panic!("ran twice") }).await;
        assert!(matches!(other, Ok(Once::InProgress { .. })), "{kind:?}: {other:?}");
        faulty.accept(Operation::Complete);
        let ran = call.await.unwrap();
        assert!(matches!(ran, Ok(Once::Ran(()))), "{kind:?}: {ran:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_cannot_work_is_refused_at_once() {
    let sound = OnceConfig::default();
    for (wrong, what) in [
        (OnceConfig { ttl: Duration::ZERO, ..sound.clone() }, "ttl"),
        (OnceConfig { lease: Duration::ZERO, ..sound.clone() }, "lease"),
        (OnceConfig { lease: Duration::MAX, ttl: Duration::MAX, ..sound.clone() }, "lease"),
        (OnceConfig { lease: 60 * SECOND, ttl: 30 * SECOND, ..sound.clone() }, "ttl"),
        (OnceConfig { max_attempts: 0, ..sound.clone() }, "max_attempts"),
        (OnceConfig { store_timeout: Duration::ZERO, ..sound.clone() }, "store_timeout"),
        (OnceConfig { store_timeout: Duration::MAX, ..sound.clone() }, "store_timeout"),
        (OnceConfig { fingerprint: crate::Fingerprinting::Pointers(vec![]), ..sound.clone() }, "fingerprint"),
    ] {
        let error = Deduplicator::new(scope(), Arc::new(MemoryStore::new()), wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(what), "{error}");
    }
    assert!(sound.check().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_could_not_be_written_says_so() {
    let (faulty, first, _) = two(3 * SECOND);
    faulty.refuse(Operation::Fail, ErrorKind::Denied);
    let failed = first.once(&key("7"), async |_| Err::<(), _>("no")).await;
    let Err(OnceError::Unwritten { error: "no", store }) = failed else { panic!("{failed:?}") };
    assert_eq!(store.kind(), ErrorKind::Denied);
    // One that is refused for a moment only is written.
    faulty.accept(Operation::Fail);
    faulty.next(Operation::Fail, Fault::Failed(ErrorKind::Denied));
    faulty.next(Operation::Fail, Fault::ReplyLost);
    let failed = first.once(&key("8"), async |_| Err::<(), _>("no")).await;
    assert!(matches!(failed, Err(OnceError::Failed("no"))), "{failed:?}");
    let again = first.once(&key("8"), async |claim| Ok::<_, String>(claim.attempt())).await;
    assert!(matches!(again, Ok(Once::Ran(2))), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_is_dead_lettered_without_another_run() {
    let store = Arc::new(MemoryStore::new());
    let dedup = dedup(&store);
    let failed = dedup.once(&key("7"), async |claim| Err::<(), _>(claim.permanent("never"))).await;
    let Err(OnceError::Permanent("never", exhausted)) = failed else { panic!("{failed:?}") };
    assert_eq!((exhausted.details().reason, exhausted.details().attempts), (Reason::Permanent, 1));
    assert_eq!(state(&store, &key("7")).await, Some(KeyState::Terminal));
    exhausted.dead_lettered().await.unwrap();
    let after = dedup.once(&key("7"), async |_| Ok::<_, String>(())).await.unwrap();
    assert!(matches!(after, Once::Dead));
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_service_uses_no_attempt_and_frees_the_key_at_once() {
    let store = Arc::new(MemoryStore::new());
    let dedup = dedup(&store);
    for _ in 0..5 {
        let failed = dedup
            .once(&key("7"), async |claim| {
                assert_eq!(claim.attempt(), 1);
                Err::<(), _>(claim.unavailable("refused"))
            })
            .await;
        assert!(matches!(failed, Err(OnceError::Unavailable("refused"))), "{failed:?}");
    }
    let counters = dedup.counters();
    assert_eq!((counters.get(Counter::Unavailable), counters.get(Counter::RunsFailed)), (5, 0));
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_under_the_names_of_a_pipeline() {
    let store = Arc::new(MemoryStore::new());
    let dedup = dedup(&store);
    let _ = dedup.once_for(&key("a"), b"1", async |_| Ok::<_, String>(())).await;
    let _ = dedup.once_for(&key("a"), b"1", async |_| Ok::<_, String>(())).await;
    let _ = dedup.once_for(&key("a"), b"2", async |_| Ok::<_, String>(())).await;
    let _ = dedup.once(&key("b"), async |_| Err::<(), _>("no")).await;
    let counters = dedup.counters();
    let counted = [
        (Counter::Received, 4),
        (Counter::Handled, 1),
        (Counter::Duplicates, 1),
        (Counter::Mismatches, 1),
        (Counter::RunsFailed, 1),
        (Counter::Retried, 1),
        (Counter::SuspectedDoubleEffects, 0),
    ];
    for (counter, count) in counted {
        assert_eq!(counters.get(counter), count, "{counter:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_removed_by_the_first_purge_that_succeeds() {
    let store = FaultyStore::new(MemoryStore::new());
    let config = OnceConfig { lease: SECOND, ttl: SECOND, ..OnceConfig::default() };
    let dedup = Deduplicator::new(scope(), Arc::new(store.clone()), config).unwrap();
    for number in 0..1200 {
        let ran = dedup.once(&key(&number.to_string()), async |_| Ok::<_, String>(())).await;
        assert!(matches!(ran, Ok(Once::Ran(()))));
    }
    let interval = store.purge_interval();
    store.next(Operation::Purge, Fault::Refused);
    tokio::time::sleep(interval + SECOND).await;
    assert_eq!(dedup.counters().get(Counter::Purged), 0);
    tokio::time::sleep(interval).await;
    assert_eq!(dedup.counters().get(Counter::Purged), 1200);
    assert_eq!(store.purge(10_000).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn thousands_of_running_calls_share_their_renewals() {
    let faulty = FaultyStore::new(MemoryStore::new());
    let config = OnceConfig { lease: 30 * SECOND, ..OnceConfig::default() };
    let dedup = Deduplicator::new(scope(), Arc::new(faulty.clone()), config).unwrap();
    let calls = (0..2000_u64).map(|number| {
        let dedup = dedup.clone();
        tokio::spawn(async move {
            // They start over ten seconds, each at its own time.
            tokio::time::sleep(Duration::from_millis(5 * number)).await;
            let key = key(&number.to_string());
            let run = async |_: &super::HeldClaim| {
                tokio::time::sleep(60 * SECOND).await;
                Ok::<_, String>(())
            };
            dedup.once(&key, run).await
        })
    });
    for call in calls.collect::<Vec<_>>() {
        assert!(matches!(call.await.unwrap(), Ok(Once::Ran(()))));
    }
    let renewals = faulty.calls(Operation::Renew);
    assert!(renewals < 400, "{renewals} calls for about 12,000 renewals");
    assert_eq!(dedup.counters().get(Counter::LeasesLost), 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_comes_back_too_late_does_not_start_on_a_lease_that_is_over() {
    use std::future::poll_fn;
    use std::task::Poll;
    let (faulty, first, second) = two(2 * SECOND);
    let this = key("7");
    let mut call = Box::pin(first.once(&this, async |_| -> Result<(), String> { panic!("it started") }));
    // Polled once, then left alone while the claim is made and its lease runs out.
    poll_fn(|context| {
        assert!(call.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
    faulty.refuse(Operation::Renew, ErrorKind::Unavailable);
    tokio::time::sleep(5 * SECOND).await;
    let other = second.once(&this, async |_| Ok::<_, String>(())).await.unwrap();
    assert!(matches!(other, Once::Ran(())));
    let late = call.await.unwrap();
    assert!(matches!(late, Once::InProgress { .. }), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_between_the_claim_and_its_start_uses_no_attempt() {
    let store = Arc::new(MemoryStore::new());
    let dedup = dedup(&store);
    let this = key("7");
    let mut call = Box::pin(dedup.once(&this, async |_| -> Result<(), String> { panic!("it started") }));
    std::future::poll_fn(|context| {
        assert!(call.as_mut().poll(context).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    while state(&store, &this).await != Some(KeyState::Pending) {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    drop(call);
    while state(&store, &this).await == Some(KeyState::Pending) {
        tokio::task::yield_now().await;
    }
    let next = dedup.once(&this, async |claim| Ok::<_, String>(claim.attempt())).await.unwrap();
    assert!(matches!(next, Once::Ran(1)), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn renewals_of_a_process_that_runs_for_years_are_still_due_in_the_future() {
    let config = OnceConfig { lease: Duration::from_millis(100), ..OnceConfig::default() };
    let dedup = Deduplicator::new(scope(), Arc::new(MemoryStore::new()), config).unwrap();
    for years in [0, 1, 10] {
        let at =
            dedup.0.started_at + Duration::from_secs(years * 365 * 24 * 3600) + Duration::from_millis(50);
        let on_grid = dedup.0.on_grid(at);
        assert!(
            on_grid <= at && at - on_grid < Duration::from_millis(5),
            "{years} years: {:?}",
            at - on_grid
        );
    }
}
