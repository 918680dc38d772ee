//! The store suite against a cluster of three nodes.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::OnceLock;

use onceward_redis::RedisConfig;
use onceward_test_servers::redis::RedisCluster;
use support::Part;

fn cluster() -> Part {
    static CLUSTER: OnceLock<RedisCluster> = OnceLock::new();
    let urls = CLUSTER.get_or_init(|| RedisCluster::start(3)).urls();
    Part::of(RedisConfig::cluster(urls))
}

onceward::store_conformance!(cluster());
onceward::checkpoint_store_conformance!(cluster());
