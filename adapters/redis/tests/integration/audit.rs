//! The audit trail beside entries of versions that kept no times.

use std::time::Duration;

use onceward::adapter::AuditLog;
use onceward::store::AuditEntry;
use onceward_redis::RedisStore;
use onceward_test_servers::redis::Redis;

use crate::support::{config, open, scope};

const HOUR: Duration = Duration::from_secs(3_600);

async fn append(store: &RedisStore, text: &str) {
    let entry = AuditEntry { subject: "letter".into(), settles: false, text: text.into() };
    store.append(&scope(), &[entry]).await.unwrap();
}

/// Appends entries as earlier versions did. The trail must have one.
fn append_bare(server: &Redis, texts: &[&str]) {
    let push =
        "local name = redis.call('KEYS', 'ow:!audit:*')[1] return redis.call('RPUSH', name, unpack(ARGV))";
    server.cli(&[&["EVAL", push, "0"], texts].concat());
}

/// Takes the times from all entries.
fn strip_times(server: &Redis) {
    let strip = "local name = redis.call('KEYS', 'ow:!audit:*')[1] local all = redis.call('LRANGE', name, 0, -1) \
                 for i, entry in ipairs(all) do redis.call('LSET', name, i - 1, (string.gsub(entry, '^%d+:', ''))) end \
                 return #all";
    server.cli(&["EVAL", strip, "0"]);
}

async fn trail(store: &RedisStore) -> Vec<(u64, String)> {
    let records = store.read(&scope(), None, 1_000).await.unwrap();
    records.into_iter().rev().map(|record| (record.number, record.text)).collect()
}

async fn remove(store: &RedisStore, age: Duration, limit: u32) -> u64 {
    store.remove_older(&scope(), age, limit).await.unwrap()
}

#[tokio::test]
async fn entries_without_a_time_are_as_old_as_the_next_one_that_has_one() {
    let server = Redis::start();
    let store = open(&config(&server.url()));
    append(&store, r#"{"n":1}"#).await;
    strip_times(&server);
    append_bare(&server, &[r#"{"n":2}"#, r#"{"n":3}"#]);
    for age in [Duration::ZERO, HOUR] {
        assert_eq!(remove(&store, age, 100).await, 0, "their age is unknown");
    }
    append(&store, r#"{"n":4}"#).await;
    assert_eq!(remove(&store, HOUR, 100).await, 0, "the one behind them is young");
    append_bare(&server, &[r#"{"n":5}"#]);
    let all = trail(&store).await;
    assert_eq!(all.len(), 5);
    // The first window holds none with a time.
    assert_eq!(remove(&store, Duration::ZERO, 2).await, 2);
    assert_eq!(trail(&store).await, all[2..]);
    assert_eq!(remove(&store, Duration::ZERO, 100).await, 2, "the one behind stays");
    assert_eq!(trail(&store).await, [(5, r#"{"n":5}"#.to_owned())]);
}

#[tokio::test]
async fn the_next_time_is_looked_for_among_twenty_times_as_many() {
    let server = Redis::start();
    let store = open(&config(&server.url()));
    append(&store, "{}").await;
    strip_times(&server);
    append_bare(&server, &["{}"; 39]);
    append(&store, "{}").await;
    assert_eq!(remove(&store, Duration::ZERO, 2).await, 0, "the 41st is not among 40");
    assert_eq!(remove(&store, Duration::ZERO, 3).await, 3);
    assert_eq!(remove(&store, Duration::ZERO, 2).await, 2);
    assert_eq!(trail(&store).await.first().map(|(number, _)| *number), Some(6));
    assert_eq!(remove(&store, Duration::ZERO, 100).await, 36);
}
