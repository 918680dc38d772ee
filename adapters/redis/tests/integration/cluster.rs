//! A cluster of three nodes: slots moved under load, a dead node, and batches with keys of all nodes.

use std::collections::HashSet;
use std::time::Duration;

use onceward::adapter::StoreAdmin;
use onceward::store::{Claim, KeyState, ListQuery};
use onceward::{ErrorKind, Store};
use onceward_redis::RedisConfig;
use onceward_test_servers::redis::RedisCluster;

use crate::support::{
    self, ConfigExt, assert_completed, claim, key, open, request, scope, slot, terms, work_through,
};

fn config(cluster: &RedisCluster) -> RedisConfig {
    RedisConfig::cluster(cluster.urls())
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_under_load_lose_and_double_nothing() {
    let cluster = RedisCluster::start(3);
    let store = open(&config(&cluster));
    // Keys to move.
    work_through(&store, 0..2_000).await;
    // Three used slots, step by step, so that many batches find each of them half moved.
    let mover = std::thread::spawn(move || {
        for byte in [0x80_u8, 0x93, 0xfa] {
            cluster.move_slowly(slot(byte));
        }
        cluster
    });
    let mut worked = 2_000;
    while !mover.is_finished() {
        work_through(&store, worked..worked + 200).await;
        worked += 200;
    }
    let cluster = mover.join().unwrap();
    assert!(worked >= 2_600, "only {worked} keys were worked through meanwhile");
    work_through(&store, worked..worked + 1_000).await;
    let other = open(&config(&cluster));
    assert_completed(&other, 0..worked + 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_served_while_a_slot_stands_half_moved() {
    let cluster = RedisCluster::start(3);
    let store = open(&config(&cluster));
    work_through(&store, 0..1_000).await;
    let slot = slot(0x80);
    let from = cluster.owner_of(slot);
    let to = (from + 1) % 3;
    cluster.begin_move(slot, from, to);
    assert!(cluster.move_keys(slot, from, to, 3) > 0);
    // Old keys on both nodes, and new ones.
    assert_completed(&store, 0..1_000).await;
    let requests: Vec<_> = (5_000..6_000).map(request).collect();
    let answers = store.claim(&scope(), &terms(), &requests).await;
    let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of 1000 failed: {:?}", failed.len(), failed[0]);
    cluster.end_move(slot, to);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_fails_its_own_keys_only() {
    let mut cluster = RedisCluster::start(3);
    for node in cluster.nodes() {
        node.cli(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let store = open(
        &config(&cluster).response_timeout(Duration::from_secs(2)).connect_timeout(Duration::from_secs(1)),
    );
    work_through(&store, 0..300).await;
    cluster.nodes_mut()[2].kill();
    let requests: Vec<_> = (1_000..1_300).map(request).collect();
    let answers = store.claim(&scope(), &terms(), &requests).await;
    let (good, failed): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(good.len() > 150 && failed.len() > 50, "{} good, {} failed", good.len(), failed.len());
    for error in failed.into_iter().filter_map(Result::err) {
        assert!(error.is_retryable(), "{error:?}");
    }
    cluster.nodes_mut()[2].start_again();
    assert_completed(&store, 0..300).await;
    let (answers, _) =
        support::insist(&requests, async |batch: Vec<_>| store.claim(&scope(), &terms(), &batch).await).await;
    assert!(
        answers.iter().all(|answer| matches!(answer, Claim::Claimed(_))),
        "the same tokens, the same claims"
    );
}

#[tokio::test]
async fn lists_and_statistics_walk_all_nodes() {
    let cluster = RedisCluster::start(3);
    let store = open(&config(&cluster));
    work_through(&store, 0..500).await;
    let stats = store.stats(&scope()).await.unwrap();
    assert_eq!((stats.get(KeyState::Completed), stats.total()), (500, 500));
    let query = ListQuery { state: None, after: None, limit: 10_000 };
    let listed = store.list(&scope(), &query).await.unwrap();
    assert!(listed.is_sorted_by_key(|record| record.key));
    let listed: HashSet<_> = listed.into_iter().map(|record| record.key).collect();
    assert_eq!(listed, (0..500).map(key).collect());
    let limited = open(&config(&cluster).scan_limit(100));
    let error = limited.stats(&scope()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    let _ = claim(&store, request(1)).await.unwrap();
}

#[tokio::test]
async fn no_node_is_there_to_begin_with() {
    let mut cluster = RedisCluster::start(3);
    cluster.nodes_mut().iter_mut().for_each(onceward_test_servers::redis::Redis::stop);
    let store = open(&config(&cluster));
    let error = claim(&store, request(1)).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    cluster.nodes_mut().iter_mut().for_each(onceward_test_servers::redis::Redis::start_again);
    work_through(&store, 0..100).await;
}
