//! The compact layout: what it keeps, what it leaves to records of their own, and stores of both layouts side by side.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use onceward::adapter::StoreAdmin;
use onceward::store::{
    AdviceLevel, Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, KeyState, ListQuery,
};
use onceward::{ErrorKind, Fingerprint, Key, Store};
use onceward_redis::{RedisConfig, RedisLayout, RedisStore};
use onceward_test_servers::redis::{Redis, RedisCluster};

use crate::support::{
    ConfigExt, beginning_of, claim, complete, completion, config, key, lease_of, open, request, scope, terms,
    work_through,
};

fn stores(server: &Redis) -> [RedisStore; 2] {
    [RedisLayout::Plain, RedisLayout::Compact].map(|layout| open(&config(&server.url()).layout(layout)))
}

/// The records that have a Redis key of their own.
fn plain_records(server: &Redis) -> u64 {
    let count = "local n = 0 for _, name in ipairs(redis.call('KEYS', 'ow:{*')) do n = n + 1 end return n";
    server.cli(&["EVAL", count, "0"]).trim().parse().unwrap()
}

/// The number of fields of each slice, with the expired ones.
fn slices(server: &Redis) -> Vec<u64> {
    let count = "local all = {} for _, name in ipairs(redis.call('KEYS', 'ow:!c*')) do \
                 if redis.call('TYPE', name).ok == 'hash' then all[#all + 1] = redis.call('HLEN', name) end end \
                 return table.concat(all, ' ')";
    server.cli(&["EVAL", count, "0"]).split_whitespace().map(|length| length.parse().unwrap()).collect()
}

fn fields(server: &Redis) -> u64 {
    slices(server).iter().sum()
}

/// Claims and completes a key.
async fn work_on(store: &RedisStore, key: Key) {
    let lease = lease_of(claim(store, ClaimRequest { key, ..request(0) }).await.unwrap());
    assert_eq!(complete(store, lease).await.unwrap(), Completion::Completed);
}

async fn claim_with(store: &RedisStore, n: u64, text: &[u8]) -> Claim {
    let request = ClaimRequest { fingerprint: Some(Fingerprint::of(text)), ..request(n) };
    claim(store, request).await.unwrap()
}

#[tokio::test]
async fn a_compact_completion_is_found_by_stores_of_either_layout() {
    let server = Redis::start();
    let [plain, compact] = stores(&server);
    let lease = lease_of(claim_with(&compact, 1, b"one").await);
    assert_eq!((plain_records(&server), fields(&server)), (1, 0));
    assert_eq!(complete(&compact, lease).await.unwrap(), Completion::Completed);
    assert_eq!((plain_records(&server), fields(&server)), (0, 1));
    for store in [&plain, &compact] {
        assert_eq!(complete(store, lease).await.unwrap(), Completion::Repeated);
        let other = onceward::store::Lease { fence: lease.fence - 1, ..lease };
        assert_eq!(complete(store, other).await.unwrap(), Completion::DoneByAnother);
        assert!(matches!(claim_with(store, 1, b"one").await, Claim::Completed { result: None, .. }));
        assert_eq!(claim_with(store, 1, b"two").await, Claim::Mismatch);
        let record = store.inspect(&scope(), &key(1)).await.unwrap().unwrap();
        assert_eq!((record.state, record.key, record.attempts), (KeyState::Completed, key(1), 0));
        assert!(record.fence >= lease.fence && record.expires_in >= terms().ttl - Duration::from_secs(60));
        assert_eq!(store.stats(&scope()).await.unwrap().total(), 1);
    }
    assert!(plain.forget(&scope(), &[key(1)]).await.pop().unwrap().unwrap());
    assert_eq!((plain_records(&server), fields(&server)), (1, 0), "the fence stays");
    let again = lease_of(claim_with(&compact, 1, b"two").await);
    assert!(again.fence > lease.fence);
}

#[tokio::test]
async fn what_a_compact_record_cannot_keep_stays_a_record_of_its_own() {
    let server = Redis::start();
    let [_, compact] = stores(&server);
    let first = lease_of(claim(&compact, request(0)).await.unwrap());
    assert_eq!(complete(&compact, first).await.unwrap(), Completion::Completed);
    let finish = async |request: CompleteRequest| {
        assert_eq!(
            compact.complete(&scope(), &[request]).await.pop().unwrap().unwrap(),
            Completion::Completed
        );
    };
    let with_result = lease_of(claim(&compact, request(1)).await.unwrap());
    finish(CompleteRequest { result: Some(Bytes::from_static(b"done")), ..completion(with_result) }).await;
    let other_ttl = lease_of(claim(&compact, request(2)).await.unwrap());
    finish(CompleteRequest { ttl: terms().ttl * 2, ..completion(other_ttl) }).await;
    let redriven = ClaimRequest { generation: 1, ..request(3) };
    finish(completion(lease_of(claim(&compact, redriven).await.unwrap()))).await;
    let released = lease_of(claim(&compact, request(4)).await.unwrap());
    assert!(compact.release(&scope(), &[released]).await.pop().unwrap().unwrap());
    finish(completion(lease_of(claim(&compact, request(4)).await.unwrap()))).await;
    assert_eq!((plain_records(&server), fields(&server)), (4, 1));
    for n in 0..5 {
        assert!(matches!(claim(&compact, request(n)).await.unwrap(), Claim::Completed { .. }), "key {n}");
    }
}

#[tokio::test]
async fn a_key_that_agrees_with_a_live_one_in_all_bits_of_a_field_stays_a_record_of_its_own() {
    let server = Redis::start();
    let [plain, compact] = stores(&server);
    let keys = [0x10, 0x11, 0x12].map(|ninth| {
        let mut bytes = [7; 16];
        bytes[8] = ninth;
        Key::from_bytes(bytes)
    });
    for key in keys {
        work_on(&compact, key).await;
    }
    assert_eq!((plain_records(&server), fields(&server)), (2, 1));
    for store in [&plain, &compact] {
        for key in keys {
            let claimed = claim(store, ClaimRequest { key, ..request(0) }).await.unwrap();
            assert!(matches!(claimed, Claim::Completed { .. }), "{key}: {claimed:?}");
        }
    }
}

#[tokio::test]
async fn a_slice_of_thousands_is_split_and_loses_nothing() {
    const CROWD: u64 = 12_000;
    let server = Redis::start();
    let [_, compact] = stores(&server);
    work_on(&compact, Key::from_bytes([0; 16])).await;
    // Copies of that record for other keys, whose last bytes are zero, too.
    let crowd = "for _, name in ipairs(redis.call('KEYS', 'ow:!c*')) do if redis.call('TYPE', name).ok == 'hash' then \
                 local value = redis.call('HGETALL', name)[2] for n = 1, ARGV[1] do \
                 redis.call('HSET', name, struct.pack('>I4I4', n * 40503 % 65536 * 65537 % 4294967296, n), value) end end end";
    server.cli(&["EVAL", crowd, "0", &CROWD.to_string()]);
    assert_eq!(slices(&server), [CROWD + 1]);
    // One write in eight would not do.
    work_through(&compact, 0..300).await;
    assert_eq!((plain_records(&server), fields(&server)), (0, CROWD + 301));
    let longest = slices(&server).into_iter().max().unwrap();
    assert!(longest <= 250, "a slice has {longest} fields");
    let requests: Vec<_> = (1..=CROWD)
        .map(|n| {
            let mut bytes = [0; 16];
            let hash = u32::try_from(n * 40503 % 65536 * 65537 % (1 << 32)).unwrap();
            bytes[..4].copy_from_slice(&hash.to_be_bytes());
            bytes[4..8].copy_from_slice(&u32::try_from(n).unwrap().to_be_bytes());
            ClaimRequest { key: Key::from_bytes(bytes), ..request(0) }
        })
        .collect();
    for claim in compact.claim(&scope(), &terms(), &requests).await {
        assert!(matches!(claim, Ok(Claim::Completed { .. })), "{claim:?}");
    }
}

#[tokio::test]
async fn publishers_cannot_choose_keys_after_which_no_slice_is_split() {
    let server = Redis::start();
    let [_, compact] = stores(&server);
    for n in 0..400_u32 {
        let mut bytes = [1; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        work_on(&compact, Key::from_bytes(bytes)).await;
    }
    // Each of the last 288 found a crowded slice, if it looked; one in eight does.
    assert!(slices(&server).len() > 1, "{:?}", slices(&server));
}

const KEYS: u64 = 12_000;
const BATCH: usize = 50;

/// Claims and completes all keys until each is completed. Each call goes to a store of either layout, as if the process that
/// claimed had been replaced by one with the other layout; now and then both reconnect.
async fn work_in_turns(url: String, seed: u64, runs: Arc<Vec<AtomicU32>>) {
    let connect =
        || [RedisLayout::Plain, RedisLayout::Compact].map(|layout| open(&config(&url).layout(layout)));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut open_keys: Vec<u64> = (0..KEYS).collect();
    let mut stores = connect();
    while !open_keys.is_empty() {
        random.shuffle(&mut open_keys);
        let mut left = Vec::new();
        for numbers in open_keys.chunks(BATCH) {
            let requests: Vec<_> = numbers.iter().map(|n| request(*n)).collect();
            let mut completions = Vec::new();
            let claims = stores[random.usize(..2)].claim(&scope(), &terms(), &requests).await;
            for (n, claim) in numbers.iter().zip(claims) {
                match claim.unwrap() {
                    Claim::Claimed(claimed) => {
                        runs[usize::try_from(*n).unwrap()].fetch_add(1, Ordering::Relaxed);
                        completions.push(completion(claimed.lease));
                    }
                    Claim::InProgress { .. } => left.push(*n),
                    Claim::Completed { .. } => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
            for done in stores[random.usize(..2)].complete(&scope(), &completions).await {
                assert_eq!(done.unwrap(), Completion::Completed);
            }
            if random.u8(..20) == 0 {
                stores = connect();
            }
        }
        open_keys = left;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layouts_that_change_under_load_lose_and_double_nothing() {
    let server = Redis::start();
    let runs: Arc<Vec<AtomicU32>> = Arc::new((0..KEYS).map(|_| AtomicU32::new(0)).collect());
    let mut workers = tokio::task::JoinSet::new();
    for seed in 0..6 {
        workers.spawn(work_in_turns(server.url(), seed, Arc::clone(&runs)));
    }
    workers.join_all().await;
    let wrong: Vec<_> =
        (0..).zip(runs.iter()).filter(|(_, runs)| runs.load(Ordering::Relaxed) != 1).collect();
    assert!(wrong.is_empty(), "{} keys did not run once: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    let (plain, compact) = (plain_records(&server), fields(&server));
    assert_eq!(plain + compact, KEYS);
    assert!(plain > KEYS / 10 && compact > KEYS / 10, "{plain} plain, {compact} compact");
    for store in stores(&server) {
        let stats = store.stats(&scope()).await.unwrap();
        assert_eq!((stats.get(KeyState::Completed), stats.total()), (KEYS, KEYS));
        for n in (0..KEYS).step_by(BATCH) {
            let requests: Vec<_> = (n..n + BATCH as u64).map(request).collect();
            for claim in store.claim(&scope(), &terms(), &requests).await {
                assert!(matches!(claim, Ok(Claim::Completed { .. })), "{claim:?}");
            }
        }
    }
}

#[tokio::test]
async fn compact_keys_are_listed_by_their_beginnings_which_find_them() {
    let server = Redis::start();
    let [_, compact] = stores(&server);
    work_through(&compact, 0..500).await;
    let pending = lease_of(claim(&compact, request(1_000)).await.unwrap());
    let query = ListQuery { state: Some(KeyState::Completed), after: None, limit: 10_000 };
    let listed = compact.list(&scope(), &query).await.unwrap();
    assert!(listed.is_sorted_by_key(|record| record.key));
    let keys: HashSet<_> = listed.iter().map(|record| record.key).collect();
    assert_eq!(keys, (0..500).map(|n| beginning_of(key(n))).collect());
    let found = compact.inspect(&scope(), &listed[7].key).await.unwrap().unwrap();
    assert_eq!((found.state, found.fence), (KeyState::Completed, listed[7].fence));
    let all = compact.list(&scope(), &ListQuery { state: None, ..query }).await.unwrap();
    assert!(all.len() == 501 && all.iter().any(|record| record.key == pending.key));
    let limited = open(&config(&server.url()).scan_limit(100));
    assert_eq!(limited.stats(&scope()).await.unwrap_err().kind(), ErrorKind::Unsupported);
}

/// Claims and completes keys that live for a second.
async fn complete_for_a_second(store: &RedisStore, numbers: std::ops::Range<u64>) {
    let short = ClaimTerms { ttl: Duration::from_secs(1), ..terms() };
    let requests: Vec<_> = numbers.map(request).collect();
    let claims = store.claim(&scope(), &short, &requests).await;
    let done: Vec<_> =
        claims.into_iter().map(|claim| CompleteRequest::new(lease_of(claim.unwrap()), short.ttl)).collect();
    for done in store.complete(&scope(), &done).await {
        assert_eq!(done.unwrap(), Completion::Completed);
    }
}

#[tokio::test]
async fn expired_fields_are_removed_when_their_slice_is_written_and_all_keys_with_the_last() {
    let server = Redis::start();
    let [_, compact] = stores(&server);
    complete_for_a_second(&compact, 0..100).await;
    assert_eq!(fields(&server), 100);
    tokio::time::sleep(Duration::from_millis(700)).await;
    complete_for_a_second(&compact, 100..101).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    complete_for_a_second(&compact, 101..102).await;
    assert!(fields(&server) <= 2, "{} fields are left of 102", fields(&server));
    assert!(matches!(claim(&compact, request(5)).await.unwrap(), Claim::Claimed(_)), "expired");
    assert!(compact.forget(&scope(), &[key(5)]).await.pop().unwrap().unwrap());
    let end = Instant::now() + Duration::from_secs(20);
    while server.cli(&["EVAL", "return #redis.call('KEYS', 'ow:!c*')", "0"]).trim() != "0" {
        assert!(Instant::now() < end, "slices or their directory stay");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_read_leaves_unknown_keys_unclaimed() {
    let server = Redis::start();
    let stores = stores(&server);
    let held = lease_of(claim(&stores[0], request(1)).await.unwrap());
    work_through(&stores[1], 10..20).await;
    // A form of a later version, and a truncated one.
    for (value, form) in [("Dsomething", "68"), ("C", "67")] {
        let spoil = "for _, name in ipairs(redis.call('KEYS', 'ow:!c*')) do if redis.call('TYPE', name).ok == 'string' then \
                     redis.call('SET', name, ARGV[1]) end end return 1";
        server.cli(&["EVAL", spoil, "0", value]);
        for store in &stores {
            for n in [2, 10] {
                let error = claim(store, request(n)).await.unwrap_err();
                assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(form), "{error:?}");
            }
            assert_eq!(store.stats(&scope()).await.unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }
    assert_eq!(complete(&stores[1], held).await.unwrap(), Completion::Completed);
    assert_eq!(plain_records(&server), 1);
}

#[tokio::test]
async fn settings_that_make_slices_large_are_warned_about() {
    for (name, value) in [("hash-max-ziplist-entries", "64"), ("hash-max-ziplist-value", "4")] {
        let server = Redis::start();
        let warned = async |store: &RedisStore| {
            let advice = store.check().await.unwrap();
            advice.into_iter().any(|advice| {
                advice.level == AdviceLevel::Warning
                    && advice.code == "redis-large-slices"
                    && advice.text.contains(&format!("{name} is {value}"))
            })
        };
        let [plain, compact] = stores(&server);
        assert!(!warned(&compact).await);
        server.cli(&["CONFIG", "SET", name, value]);
        assert!(warned(&compact).await, "{name}");
        assert!(!warned(&plain).await, "{name} is nothing to the plain layout");
        work_through(&compact, 0..200).await;
        assert!(matches!(claim(&plain, request(7)).await.unwrap(), Claim::Completed { .. }));
    }
}

#[tokio::test]
async fn clusters_refuse_compact_records() {
    let mut cluster = RedisCluster::start(3);
    let compact = RedisConfig::cluster(cluster.urls()).layout(RedisLayout::Compact);
    let error = RedisStore::open(compact.clone()).unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("not for clusters"), "{error}");
    assert!(compact.check().is_err());
    let server = Redis::start();
    work_through(&stores(&server)[1], 0..1).await;
    let format = server.cli(&["GET", "ow:!format"]);
    // A cluster that has taken over the keys of such a server.
    let slots: Vec<_> = cluster.nodes_mut().iter().collect();
    for node in slots {
        node.cli(&["SET", "ow:!format", format.trim()]);
    }
    let store = open(&RedisConfig::cluster(cluster.urls()));
    let error = claim(&store, request(1)).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Config && error.to_string().contains("not available in a cluster"),
        "{error}"
    );
}

#[tokio::test]
async fn the_first_completion_records_that_compact_records_may_be_there() {
    let server = Redis::start();
    let format = || server.cli(&["GET", "ow:!format"]).trim().to_owned();
    let announced = async |store: &RedisStore| {
        let advice = store.check().await.unwrap();
        advice.iter().any(|advice| advice.text.contains("no longer start"))
    };
    let [plain, compact] = stores(&server);
    assert!(announced(&compact).await && !announced(&plain).await);
    assert_eq!(compact.stats(&scope()).await.unwrap().total(), 0);
    let lease = lease_of(claim(&compact, request(1)).await.unwrap());
    // Versions that do not read compact records ask for exactly this.
    assert_eq!(format(), "records 1, keys 1");
    assert_eq!(complete(&plain, lease).await.unwrap(), Completion::Completed);
    assert_eq!(format(), "records 1, keys 1");
    work_through(&compact, 2..3).await;
    assert_eq!(format(), "records 2, keys 1");
    let [later, compact] = stores(&server);
    assert!(matches!(claim(&later, request(2)).await.unwrap(), Claim::Completed { .. }));
    assert!(!announced(&compact).await && !announced(&later).await);
}

#[tokio::test]
async fn a_later_format_is_not_overwritten() {
    let server = Redis::start();
    let [_, compact] = stores(&server);
    let lease = lease_of(claim(&compact, request(1)).await.unwrap());
    server.cli(&["SET", "ow:!format", "records 3, keys 1"]);
    let error = complete(&compact, lease).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("records 3"), "{error}");
    assert_eq!(server.cli(&["GET", "ow:!format"]).trim(), "records 3, keys 1");
    assert_eq!((plain_records(&server), fields(&server)), (1, 0));
}
