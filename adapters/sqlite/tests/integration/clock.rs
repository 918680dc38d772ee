//! One clock for all processes that share a file, whatever becomes of the host's.

use std::path::PathBuf;
use std::time::Duration;

use onceward::Store;
use onceward::adapter::StoreAdmin;
use onceward::store::{Claim, ClaimTerms, CompleteRequest, RenewRequest, Renewal};
use onceward_sqlite::{Clock, SqliteConfig, SqliteStore};

use crate::support::{request, scope};

const HOUR: Duration = Duration::from_secs(3_600);
/// Longer than a test takes.
const LONG: Duration = Duration::from_secs(600);

fn terms(lease: Duration) -> ClaimTerms {
    ClaimTerms { lease, max_attempts: 9, ttl: 48 * HOUR }
}

async fn claim(store: &SqliteStore, n: u8, lease: Duration) -> Claim {
    store.claim(&scope(), &terms(lease), &[request(n)]).await.remove(0).unwrap()
}

/// A file, and processes that have it open: each with a clock of its own, as the host's was when they started.
struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("onceward.db")
    }

    /// A process that finds the host's clock ahead by so much.
    async fn process(&self, ahead: Duration) -> (SqliteStore, Clock) {
        let clock = Clock::system();
        clock.advance(ahead);
        let store =
            SqliteStore::open_with_clock(SqliteConfig::new(self.path()), clock.clone()).await.unwrap();
        (store, clock)
    }
}

#[tokio::test]
async fn a_live_lease_is_not_taken_over_by_a_process_that_read_the_clock_before_it_was_set_back() {
    let host = Host::new();
    let (before, clock) = host.process(HOUR).await;
    assert!(matches!(claim(&before, 1, LONG).await, Claim::Claimed(_)));
    clock.set_back(HOUR);
    // Started after the step: it never saw the clock that was ahead.
    let (after, _) = host.process(Duration::ZERO).await;
    let Claim::Claimed(claimed) = claim(&after, 2, LONG).await else { panic!("the key is free") };
    for _ in 0..3 {
        assert!(matches!(claim(&before, 2, LONG).await, Claim::InProgress { .. }), "the lease is live");
        assert!(matches!(claim(&after, 1, LONG).await, Claim::InProgress { .. }), "so is the other one");
    }
    let renewed =
        after.renew(&scope(), &[RenewRequest { lease: claimed.lease, lease_for: LONG, started: true }]).await;
    assert!(matches!(renewed[0], Ok(Renewal::Renewed)), "{renewed:?}");
}

#[tokio::test]
async fn a_clock_that_was_read_and_not_written_has_no_say() {
    let host = Host::new();
    // It opens the file and looks, an hour ahead, and writes nothing.
    let (looker, clock) = host.process(HOUR).await;
    assert!(looker.inspect(&scope(), &request(1).key).await.unwrap().is_none());
    clock.set_back(HOUR);
    let (worker, _) = host.process(Duration::ZERO).await;
    assert!(matches!(claim(&worker, 1, LONG).await, Claim::Claimed(_)));
    assert!(matches!(claim(&looker, 1, LONG).await, Claim::InProgress { .. }));
}

#[tokio::test]
async fn the_keys_of_a_dead_process_are_free_after_their_lease_although_the_clock_was_set_back() {
    let host = Host::new();
    let (dead, clock) = host.process(HOUR).await;
    assert!(matches!(claim(&dead, 1, Duration::from_millis(300)).await, Claim::Claimed(_)));
    drop(dead);
    clock.set_back(HOUR);
    let (heir, _) = host.process(Duration::ZERO).await;
    let taken_over = async {
        loop {
            match claim(&heir, 1, LONG).await {
                Claim::Claimed(_) => return,
                Claim::InProgress { .. } => tokio::time::sleep(Duration::from_millis(20)).await,
                other => panic!("{other:?}"),
            }
        }
    };
    // Far less than the hour that the host's clock needs to be where it was.
    tokio::time::timeout(Duration::from_secs(60), taken_over).await.unwrap();
}

#[tokio::test]
async fn a_completion_outlives_a_clock_that_is_set_back_and_all_see_one_that_is_set_forward() {
    let host = Host::new();
    let (one, clock) = host.process(HOUR).await;
    let Claim::Claimed(claimed) = claim(&one, 1, LONG).await else { panic!("the key is free") };
    one.complete(&scope(), &[CompleteRequest::new(claimed.lease, 2 * HOUR)]).await.remove(0).unwrap();
    clock.set_back(HOUR);
    let (other, ahead) = host.process(Duration::ZERO).await;
    for store in [&one, &other] {
        assert!(matches!(claim(store, 1, LONG).await, Claim::Completed { .. }));
    }
    // Four hours later: the TTL is over for the one that knows it, and then for all.
    ahead.advance(4 * HOUR);
    assert!(matches!(claim(&other, 1, LONG).await, Claim::Claimed(_)));
    assert!(matches!(claim(&one, 1, LONG).await, Claim::InProgress { .. }));
}

#[tokio::test]
async fn the_fences_of_two_processes_with_different_clocks_grow() {
    let host = Host::new();
    let (one, clock) = host.process(HOUR).await;
    let (other, _) = host.process(Duration::ZERO).await;
    let mut last = 0;
    for round in 0..6_u32 {
        if round == 3 {
            clock.set_back(HOUR);
        }
        let store = if round % 2 == 0 { &one } else { &other };
        let Claim::Claimed(claimed) = claim(store, 1, LONG).await else { panic!("the key is free") };
        assert!(claimed.lease.fence > last);
        last = claimed.lease.fence;
        assert!(store.release(&scope(), &[claimed.lease]).await.remove(0).unwrap());
    }
}
