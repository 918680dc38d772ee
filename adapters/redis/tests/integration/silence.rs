//! Unresponsive servers: half-open connections with any time limit, slow servers, hanging replicas, unreachable Sentinels.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use onceward::store::{Lease, RenewRequest, Renewal};
use onceward::{ErrorKind, Store};
use onceward_redis::{RedisConfig, RedisStore};
use onceward_test_servers::proxy::{Direction, Flow, Proxy};
use onceward_test_servers::redis::{Redis, RedisReplicated, RedisSentinel};
use tokio::time::timeout;

use crate::support::{self, ConfigExt, claim, config, lease_of, open, request, scope, terms};

/// The proxy has a runtime of its own, which must not start within another.
fn proxy_to(address: std::net::SocketAddr) -> Proxy {
    std::thread::spawn(move || Proxy::start(address).unwrap()).join().unwrap()
}

fn through(proxy: &Proxy) -> RedisConfig {
    config(&format!("redis://{}", proxy.address()))
}

/// Claims with callers that wait for `patience`, and returns how many timed out before one got a result.
async fn gave_up(store: &RedisStore, patience: Duration, most: usize) -> usize {
    let request = request(7);
    for tries in 0..=most {
        if let Ok(Ok(answer)) = timeout(patience, claim(store, request)).await {
            let _ = lease_of(answer);
            return tries;
        }
    }
    panic!("no answer in {most} tries of {patience:?}");
}

#[tokio::test]
async fn a_half_open_connection_is_replaced_however_short_callers_wait() {
    let server = Redis::start();
    for (patience, response_timeout) in [(2_000, 5_000), (300, 5_000), (900, 60_000), (60_000, 5_000)] {
        let proxy = proxy_to(server.address());
        let millis = Duration::from_millis;
        let settings = through(&proxy).response_timeout(millis(response_timeout));
        let store = open(&settings.prefix(format!("p{patience}")));
        let _ = lease_of(claim(&store, request(0)).await.unwrap());
        proxy.half_open();
        // Some seconds in total; without the replacement it would be a quarter of an hour.
        let most = usize::try_from(15_000 / patience + 1).unwrap();
        let tries = gave_up(&store, millis(patience), most).await;
        assert!(tries >= 1 || patience > response_timeout, "the connection was half-open");
        assert_eq!(proxy.accepted(), 2, "one connection, and the one that replaced it");
    }
}

#[tokio::test]
async fn a_connection_is_made_although_each_caller_gives_up_before() {
    let server = Redis::start();
    let proxy = proxy_to(server.address());
    proxy.set(Direction::ToClient, Flow::Delay(Duration::from_millis(400)));
    let store = open(&through(&proxy));
    // The login and the claim need one reply each; no caller has time for both.
    assert!(gave_up(&store, Duration::from_millis(600), 20).await >= 1);
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test]
async fn a_server_that_is_merely_slow_keeps_its_connection() {
    let server = Redis::start();
    let proxy = proxy_to(server.address());
    let store = open(&through(&proxy).response_timeout(Duration::from_secs(30)));
    let _ = lease_of(claim(&store, request(0)).await.unwrap());
    proxy.set(Direction::ToClient, Flow::Delay(Duration::from_millis(1_500)));
    for number in 1..=4 {
        let _ = lease_of(claim(&store, request(number)).await.unwrap());
    }
    // The first slow reply is suspicious; after it such a latency is expected.
    assert!(proxy.accepted() <= 2, "{} connections", proxy.accepted());
}

#[tokio::test]
async fn a_server_that_takes_longer_than_the_connect_timeout_is_reached_all_the_same() {
    let server = Redis::start();
    let proxy = proxy_to(server.address());
    proxy.set(Direction::ToClient, Flow::Delay(Duration::from_millis(600)));
    let short = through(&proxy).connect_timeout(Duration::from_millis(400));
    let store = open(&short);
    let first = claim(&store, request(1)).await.unwrap_err();
    assert_eq!(first.kind(), ErrorKind::Unavailable, "{first:?}");
    let new = request(2);
    let _ = lease_of(support::answered(async || claim(&store, new).await).await);
}

const SHORT_LEASE: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn renewals_do_not_stand_behind_waits_for_a_hanging_replica() {
    let servers = RedisReplicated::start();
    let waiting = config(&servers.primary.url())
        .wait_replicas(1)
        .wait_timeout(Duration::from_secs(3))
        .response_timeout(Duration::from_secs(10));
    let store = Arc::new(open(&waiting));
    let terms = onceward::store::ClaimTerms { lease: SHORT_LEASE, ..terms() };
    let requests: Vec<_> = (0..20).map(request).collect();
    let claims = store.claim(&scope(), &terms, &requests).await;
    let leases: Vec<Lease> = claims.into_iter().map(|claim| lease_of(claim.unwrap())).collect();
    servers.replica.pause(true);

    // New messages are claimed continuously, and each claim waits for the replica.
    let over = Arc::new(AtomicBool::new(false));
    let claimers: Vec<_> = (0..8)
        .map(|worker| {
            let (store, over) = (Arc::clone(&store), Arc::clone(&over));
            tokio::spawn(async move {
                let mut refused = 0;
                while !over.load(Ordering::SeqCst) {
                    let error = claim(&store, request(1_000 + worker)).await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
                    refused += 1;
                }
                refused
            })
        })
        .collect();
    let renewals: Vec<_> = leases
        .iter()
        .map(|lease| RenewRequest { lease: *lease, lease_for: SHORT_LEASE, started: true })
        .collect();
    // For three leases; a renewal has a time limit of a third of a lease, as in the pipeline.
    let mut unanswered = 0;
    for _ in 0..12 {
        match timeout(SHORT_LEASE / 3, store.renew(&scope(), &renewals)).await {
            Ok(answers) => {
                assert!(answers.iter().all(|answer| matches!(answer, Ok(Renewal::Renewed))), "{answers:?}")
            }
            Err(_) => unanswered += 1,
        }
        tokio::time::sleep(SHORT_LEASE / 4).await;
    }
    over.store(true, Ordering::SeqCst);
    for claimer in claimers {
        assert!(claimer.await.unwrap() > 0);
    }
    assert_eq!(unanswered, 0);
    servers.replica.pause(false);
    let new = request(2_000);
    let _ = lease_of(support::answered(async || claim(&store, new).await).await);
}

#[tokio::test]
async fn sentinels_out_of_reach_do_not_hide_one_that_answers() {
    let servers = RedisReplicated::start();
    let sentinel = RedisSentinel::start("orders", &servers.primary);
    let lost: Vec<Proxy> = (0..4).map(|_| proxy_to(servers.primary.address())).collect();
    lost.iter().for_each(Proxy::partition);
    let mut urls: Vec<String> = lost.iter().map(|proxy| format!("redis://{}", proxy.address())).collect();
    urls.push(sentinel.url());
    let config = RedisConfig::sentinel(urls, "orders");
    // The client itself waits a second for each unresponsive Sentinel.
    let store = open(&config.connect_timeout(Duration::from_millis(900)));
    let _ = lease_of(claim(&store, request(1)).await.unwrap());
}
