//! The start check: servers that are refused, with the fix, and the advice about others.

use onceward::store::{Advice, AdviceLevel};
use onceward::{ErrorKind, Store};
use onceward_redis::RedisConfig;
use onceward_test_servers::redis::{Redis, RedisCluster};

use crate::support::{ConfigExt, claim, config, open, request};

async fn check(config: &RedisConfig) -> Result<Vec<Advice>, onceward::Error> {
    open(config).check().await
}

fn says(advice: &[Advice], level: AdviceLevel, text: &str) -> bool {
    advice.iter().any(|advice| advice.level == level && advice.text.contains(text))
}

#[tokio::test]
async fn a_good_server_has_nothing_to_be_warned_about() {
    let server = Redis::start();
    let advice = check(&config(&server.url())).await.unwrap();
    assert!(advice.iter().all(|advice| advice.level == AdviceLevel::Ok), "{advice:?}");
    assert!(says(&advice, AdviceLevel::Ok, "noeviction"), "{advice:?}");
    assert!(says(&advice, AdviceLevel::Ok, "append-only file"), "{advice:?}");
    // Counted by the server: the random bytes of a key may contain a line end.
    let count = "return redis.call('DBSIZE') - redis.call('EXISTS', 'ow:!format')";
    let others: u64 = server.cli(&["EVAL", count, "0"]).trim().parse().unwrap();
    assert!(others <= 1, "{others} keys are left besides the format and the expiring probe");
}

#[tokio::test]
async fn a_server_that_evicts_keys_is_refused_with_the_fix() {
    for policy in ["volatile-lru", "allkeys-lru", "volatile-ttl", "allkeys-random"] {
        let server = Redis::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", policy]);
        let error = check(&config(&server.url())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        let text = error.to_string();
        assert!(text.contains(policy) && text.contains("set maxmemory-policy noeviction"), "{text}");
    }
}

#[tokio::test]
async fn earlier_evictions_are_told() {
    let server = Redis::start_with(&["--maxmemory", "3mb", "--maxmemory-policy", "allkeys-random"]);
    let fill = "for i = 1, 40 do redis.call('SET', 'filler' .. i, string.rep('x', 100000)) end";
    // Keys are evicted without an error.
    server.cli(&["EVAL", fill, "0"]);
    server.cli(&["EVAL", fill, "0"]);
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "100mb"]);
    let advice = check(&config(&server.url())).await.unwrap();
    assert!(says(&advice, AdviceLevel::Warning, "has evicted"), "{advice:?}");
}

#[tokio::test]
async fn missing_persistence_and_idle_replicas_are_warned_about() {
    let server = Redis::start_with(&["--appendonly", "no"]);
    let port = server.port().to_string();
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]);
    while !server.cli(&["INFO", "replication"]).contains("state=online") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let advice = check(&config(&server.url())).await.unwrap();
    assert!(says(&advice, AdviceLevel::Warning, "restart loses all keys"), "{advice:?}");
    assert!(says(&advice, AdviceLevel::Warning, "1 replicas, asynchronous"), "{advice:?}");
    let advice = check(&config(&server.url()).wait_replicas(1)).await.unwrap();
    assert!(says(&advice, AdviceLevel::Ok, "wait for 1"), "{advice:?}");
    // With too few replicas the probe itself cannot be confirmed.
    let error = check(&config(&server.url()).wait_replicas(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");

    let error = check(&config(&replica.url())).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("is a replica"), "{error}");
    let error = claim(&open(&config(&replica.url())), request(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn keys_in_another_format_are_refused() {
    let server = Redis::start();
    server.cli(&["SET", "ow:!format", "records 9, keys 9"]);
    let store = open(&config(&server.url()));
    for error in [store.check().await.unwrap_err(), claim(&store, request(1)).await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        assert!(error.to_string().contains("records 9, keys 9"), "{error}");
    }
    assert!(check(&config(&server.url()).prefix("other")).await.is_ok());
    assert_eq!(server.cli(&["GET", "other:!format"]).trim(), "records 1, keys 1");
}

#[tokio::test]
async fn a_cluster_and_a_single_server_are_not_taken_for_each_other() {
    let alone = Redis::start();
    let error = check(&RedisConfig::cluster([alone.url()])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    let cluster = RedisCluster::start(3);
    let error = check(&config(&cluster.nodes()[0].url())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.to_string().contains("RedisConfig::cluster"), "{error}");
    let urls = cluster.urls();
    let advice = check(&RedisConfig::cluster(urls.clone())).await.unwrap();
    for url in &urls {
        let place = url.trim_start_matches("redis://");
        assert!(says(&advice, AdviceLevel::Ok, &format!("{place}: Redis")), "{advice:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_or_no_redis_is_named_as_such() {
    let mut server = Redis::start();
    server.stop();
    let error = check(&config(&server.url())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("nothing listens"), "{error}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let silent = config(&url).response_timeout(std::time::Duration::from_millis(200));
    let error = check(&silent).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}
