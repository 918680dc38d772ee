//! A primary with a replica: what a failover loses, the effect of waiting for replicas, and Sentinels.

use std::time::{Duration, Instant};

use onceward::store::{Claim, Completion};
use onceward::{ErrorKind, Store};
use onceward_redis::RedisConfig;
use onceward_test_servers::redis::{RedisReplicated, RedisSentinel};

use crate::support::{
    self, ConfigExt, answered, claim, complete, config, lease_of, open, request, work_through,
};

fn through(sentinel: &RedisSentinel) -> RedisConfig {
    RedisConfig::sentinel([sentinel.url()], "orders")
}

#[tokio::test]
async fn the_store_follows_a_failover() {
    let mut servers = RedisReplicated::start();
    let sentinel = RedisSentinel::start("orders", &servers.primary);
    let store = open(&through(&sentinel));
    store.check().await.unwrap();
    let held = lease_of(claim(&store, request(1)).await.unwrap());
    let done = lease_of(claim(&store, request(2)).await.unwrap());
    assert_eq!(complete(&store, done).await.unwrap(), Completion::Completed);
    servers.await_in_step();
    servers.primary.kill();
    let since = Instant::now();
    let other = answered(async || claim(&store, request(1)).await).await;
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    assert_eq!(sentinel.primary_port("orders"), servers.replica.port());
    assert!(matches!(other, Claim::InProgress { .. }), "what had reached the replica is there: {other:?}");
    assert_eq!(complete(&store, held).await.unwrap(), Completion::Completed);
    assert!(matches!(claim(&store, request(2)).await.unwrap(), Claim::Completed { .. }));
    work_through(&store, 100..300).await;
}

/// The documented limit: replication is asynchronous.
#[tokio::test]
async fn a_failover_loses_what_the_replica_had_not_got() {
    let mut servers = RedisReplicated::start();
    let sentinel = RedisSentinel::start("orders", &servers.primary);
    let store = open(&through(&sentinel));
    let earlier = lease_of(claim(&store, request(1)).await.unwrap());
    servers.await_in_step();
    servers.replica.pause(true);
    // Otherwise the following writes would be buffered in the socket of the replica.
    servers.primary.cli(&["CLIENT", "KILL", "TYPE", "replica"]);
    let lost = lease_of(claim(&store, request(2)).await.unwrap());
    assert_eq!(complete(&store, earlier).await.unwrap(), Completion::Completed);
    servers.primary.kill();
    servers.replica.pause(false);
    // Another worker claims the key that the first one holds: two handlers may overlap, with different fences.
    let doubled = lease_of(answered(async || claim(&store, request(2)).await).await);
    assert!(doubled.fence > lost.fence);
    assert_eq!(complete(&store, lost).await.unwrap(), Completion::HeldByAnother);
    assert_eq!(complete(&store, doubled).await.unwrap(), Completion::Completed);
    // The owner repeats the lost completion, which finds its claim pending.
    assert!(matches!(claim(&store, request(1)).await.unwrap(), Claim::InProgress { .. }));
    assert_eq!(complete(&store, earlier).await.unwrap(), Completion::Completed);
}

#[tokio::test]
async fn with_wait_replicas_a_claim_that_no_replica_has_is_not_given_out() {
    let servers = RedisReplicated::start();
    let waiting = config(&servers.primary.url()).wait_replicas(1).wait_timeout(Duration::from_secs(1));
    let store = open(&waiting);
    let earlier = lease_of(claim(&store, request(1)).await.unwrap());
    servers.replica.pause(true);
    let request = request(2);
    let error = claim(&store, request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    assert!(error.to_string().contains("0 of 1 replicas"), "{error}");
    assert_eq!(complete(&store, earlier).await.unwrap_err().kind(), ErrorKind::Timeout);
    // A retry over another connection, on which the primary has no write to wait for, is not confirmed either.
    let again = open(&waiting);
    let error = claim(&again, request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    servers.replica.pause(false);
    let lease = lease_of(answered(async || claim(&store, request).await).await);
    assert_eq!(answered(async || complete(&store, lease).await).await, Completion::Completed);
    assert_eq!(answered(async || complete(&store, earlier).await).await, Completion::Repeated);
}

#[tokio::test]
async fn with_wait_replicas_a_failover_loses_nothing_that_was_confirmed() {
    let mut servers = RedisReplicated::start();
    let sentinel = RedisSentinel::start("orders", &servers.primary);
    let store = open(&through(&sentinel).wait_replicas(1));
    work_through(&store, 0..500).await;
    let held = lease_of(claim(&store, request(1_000)).await.unwrap());
    servers.primary.kill();
    // The new primary has no replica.
    let after = open(&through(&sentinel));
    support::assert_completed(&after, 0..500).await;
    assert_eq!(complete(&after, held).await.unwrap(), Completion::Completed);
}
