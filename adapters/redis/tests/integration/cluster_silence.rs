//! A cluster with unresponsive nodes: the keys of the other nodes are processed at their usual rate.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use onceward::store::Claim;
use onceward::{Key, Store};
use onceward_redis::{RedisConfig, RedisStore};
use onceward_test_servers::redis::RedisCluster;

use crate::support::{
    assert_completed, bucket, completion, open, owners, request, scope, terms, work_through,
};

/// The duration of each measurement.
const WINDOW: Duration = Duration::from_secs(5);

const WORKERS: u64 = 4;

/// The node that is killed, and the one that is paused.
const KILLED: usize = 3;
const STOPPED: usize = 4;

/// Claims and completes batches of new keys of all nodes for [`WINDOW`], and returns the number of completed keys of the nodes
/// that stay up. Failed items are not retried.
async fn completed(store: &Arc<RedisStore>, owners: &Arc<HashMap<u8, usize>>, keys: &Arc<AtomicU64>) -> u64 {
    let over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (store, owners, keys) = (Arc::clone(store), Arc::clone(owners), Arc::clone(keys));
            let over = Arc::clone(&over);
            tokio::spawn(async move {
                let mut count = 0;
                while !over.load(Ordering::SeqCst) {
                    let first = keys.fetch_add(50, Ordering::SeqCst);
                    let requests: Vec<_> = (first..first + 50).map(request).collect();
                    let claims = store.claim(&scope(), &terms(), &requests).await;
                    let leases: Vec<_> = claims
                        .into_iter()
                        .filter_map(|claim| match claim {
                            Ok(Claim::Claimed(claimed)) => Some(completion(claimed.lease)),
                            Ok(other) => panic!("expected a claim, got {other:?}"),
                            Err(error) => {
                                assert!(error.is_retryable(), "{error:?}");
                                None
                            }
                        })
                        .collect();
                    let stays = |key: &Key| owners[&bucket(key)] < KILLED;
                    let answers = store.complete(&scope(), &leases).await;
                    let done = leases
                        .iter()
                        .zip(answers)
                        .filter(|(lease, answer)| stays(&lease.lease.key) && answer.is_ok());
                    count += done.count() as u64;
                }
                count
            })
        })
        .collect();
    tokio::time::sleep(WINDOW).await;
    over.store(true, Ordering::SeqCst);
    let mut sum = 0;
    for worker in workers {
        sum += worker.await.unwrap();
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_and_a_stopped_node_leave_the_keys_of_the_others_at_their_rate() {
    let mut cluster = RedisCluster::start(5);
    for node in cluster.nodes() {
        node.cli(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let urls = cluster.urls();
    let config = RedisConfig::cluster(urls);
    let store = Arc::new(open(&config));
    work_through(&store, 0..300).await;
    let (owners, keys) = (Arc::new(owners(&cluster)), Arc::new(AtomicU64::new(1_000_000)));

    let whole = completed(&store, &owners, &keys).await;
    cluster.nodes_mut()[KILLED].kill();
    cluster.nodes()[STOPPED].pause(true);
    let partial = completed(&store, &owners, &keys).await;
    // Waiting for the two would leave next to nothing; other load on the machine takes a part.
    assert!(partial * 2 >= whole, "{partial} keys with two nodes away, {whole} without a fault");

    cluster.nodes()[STOPPED].pause(false);
    cluster.nodes_mut()[KILLED].start_again();
    assert_completed(&store, 0..300).await;
    work_through(&store, 1_000..1_300).await;
}
