//! Faults of one server: flushed scripts, killed connections, a killed process, full memory, lost replies, long silences.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use onceward::adapter::StoreAdmin;
use onceward::store::{Claim, Completion};
use onceward::{ErrorKind, Store};
use onceward_redis::RedisStore;
use onceward_test_servers::proxy::Proxy;
use onceward_test_servers::redis::Redis;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{
    self, ConfigExt, answered, assert_completed, claim, complete, completion, config, lease_of, open,
    request, scope, terms, work_through,
};

/// The proxy has a runtime of its own, which must not start within another.
fn proxy_to(server: &Redis) -> Proxy {
    let address = server.address();
    std::thread::spawn(move || Proxy::start(address).unwrap()).join().unwrap()
}

/// A store behind a proxy, with timeouts that are short enough for a test.
fn behind(proxy: &Proxy) -> RedisStore {
    let url = format!("redis://{}", proxy.address());
    let short = Duration::from_millis(500);
    open(&config(&url).response_timeout(short).connect_timeout(short))
}

/// Repeats `harm` on a thread of its own until `work` is done, and returns how often.
async fn amid<T>(harm: impl Fn() + Send + Sync, work: impl Future<Output = T>) -> (T, u32) {
    let over = AtomicBool::new(false);
    let over = &over;
    let harm = &harm;
    // The scope would wait on this thread; the work continues concurrently.
    let times = std::sync::atomic::AtomicU32::new(0);
    let times = &times;
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|threads| {
        threads.spawn(move || {
            while !over.load(Ordering::SeqCst) {
                harm();
                times.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(ended);
        });
        let result = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let result = work.await;
                over.store(true, Ordering::SeqCst);
                let _ = end.await;
                result
            })
        });
        (result, times.load(Ordering::SeqCst))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_flushed_in_the_middle_are_not_noticed() {
    let server = Redis::start();
    let store = open(&config(&server.url()));
    let flush = || drop(server.cli(&["SCRIPT", "FLUSH"]));
    let (errors, flushed) = amid(flush, work_through(&store, 0..20_000)).await;
    assert!(flushed > 20, "the scripts were flushed {flushed} times only");
    assert_eq!(errors, 0);
    assert_completed(&store, 0..20_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_killed_in_the_middle_lose_and_double_nothing() {
    let server = Redis::start();
    let store = open(&config(&server.url()));
    let kill = || drop(server.cli(&["CLIENT", "KILL", "TYPE", "normal"]));
    let (errors, killed) = amid(kill, work_through(&store, 0..10_000)).await;
    assert!(killed > 20 && errors > 0, "{killed} kills, {errors} errors");
    assert_completed(&store, 0..10_000).await;
}

#[tokio::test]
async fn claims_and_completions_survive_a_killed_server() {
    let mut server = Redis::start();
    let store = open(&config(&server.url()));
    let held = lease_of(claim(&store, request(1)).await.unwrap());
    let done = lease_of(claim(&store, request(2)).await.unwrap());
    assert_eq!(complete(&store, done).await.unwrap(), Completion::Completed);
    server.kill();
    let down = claim(&store, request(3)).await.unwrap_err();
    assert_eq!(down.kind(), ErrorKind::Unavailable, "{down:?}");
    server.start_again();
    let other = answered(async || claim(&store, request(1)).await).await;
    assert!(matches!(other, Claim::InProgress { .. }), "{other:?}");
    assert_eq!(complete(&store, held).await.unwrap(), Completion::Completed);
    assert_eq!(complete(&store, done).await.unwrap(), Completion::Repeated);
    assert!(matches!(claim(&store, request(2)).await.unwrap(), Claim::Completed { .. }));
}

#[tokio::test]
async fn a_store_started_before_its_server_recovers_by_itself() {
    let mut server = Redis::start();
    server.stop();
    let store = open(&config(&server.url()));
    let error = claim(&store, request(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    server.start_again();
    let since = Instant::now();
    let _ = lease_of(answered(async || claim(&store, request(1)).await).await);
    assert!(since.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn used_up_memory_stops_claims_until_there_is_space() {
    let server = Redis::start();
    let store = open(&config(&server.url()));
    let lease = lease_of(claim(&store, request(1)).await.unwrap());
    let done = lease_of(claim(&store, request(2)).await.unwrap());
    assert_eq!(complete(&store, done).await.unwrap(), Completion::Completed);
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..2 {
        let error = claim(&store, request(3)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(error.to_string().contains("memory"), "{error}");
    }
    assert_eq!(complete(&store, lease).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(
        matches!(claim(&store, request(2)).await.unwrap(), Claim::Completed { .. }),
        "nothing was evicted"
    );
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    let _ = lease_of(claim(&store, request(3)).await.unwrap());
    assert_eq!(complete(&store, lease).await.unwrap(), Completion::Completed);
}

#[tokio::test]
async fn a_server_that_is_loading_is_waited_for() {
    let mut server = Redis::start_with(&["--loading-process-events-interval-bytes", "1024"]);
    let store = open(&config(&server.url()));
    work_through(&store, 0..3_000).await;
    server.kill();
    server.set_argument("--key-load-delay", "1000");
    server.start_again();
    // The first call still uses the old connection.
    let first = claim(&store, request(1)).await.unwrap_err();
    assert_eq!(first.kind(), ErrorKind::Unavailable, "{first:?}");
    let error = claim(&store, request(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("loading"), "{error}");
    assert!(store.check().await.unwrap_err().is_retryable());
    assert_completed(&store, 0..3_000).await;
}

#[tokio::test]
async fn a_server_busy_with_a_long_script_is_waited_for() {
    let server = Redis::start_with(&["--busy-reply-threshold", "50"]);
    let store = open(&config(&server.url()));
    let lease = lease_of(claim(&store, request(1)).await.unwrap());
    let url = server.url();
    let busy = std::thread::spawn(move || {
        let mut client = redis::Client::open(url).unwrap().get_connection().unwrap();
        let _ = redis::cmd("EVAL").arg("while true do end").arg(0).query::<()>(&mut client);
    });
    let error = loop {
        match store.renew(&scope(), &[renewal(lease)]).await.pop().unwrap() {
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("busy"), "{error}");
    server.cli(&["SCRIPT", "KILL"]);
    assert_eq!(answered(async || complete(&store, lease).await).await, Completion::Completed);
    busy.join().unwrap();
}

fn renewal(lease: onceward::store::Lease) -> onceward::store::RenewRequest {
    onceward::store::RenewRequest { lease, lease_for: support::LEASE, started: false }
}

#[tokio::test]
async fn a_claim_whose_reply_was_lost_recognises_itself() {
    let server = Redis::start();
    let proxy = proxy_to(&server);
    let store = behind(&proxy);
    // The server has cached both scripts: a lost NOSCRIPT reply would be another case.
    work_through(&store, 100..110).await;
    proxy.drop_replies();
    let request = request(1);
    let error = claim(&store, request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    let lease = lease_of(answered(async || claim(&store, request).await).await);
    proxy.drop_replies();
    let error = complete(&store, lease).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    assert_eq!(answered(async || complete(&store, lease).await).await, Completion::Repeated);
}

#[tokio::test]
async fn a_half_open_connection_is_given_up_after_one_timeout() {
    let server = Redis::start();
    let proxy = proxy_to(&server);
    let store = behind(&proxy);
    let _ = lease_of(claim(&store, request(0)).await.unwrap());
    proxy.half_open();
    assert_eq!(claim(&store, request(1)).await.unwrap_err().kind(), ErrorKind::Timeout);
    let _ = lease_of(claim(&store, request(1)).await.unwrap());
}

#[tokio::test]
async fn a_partition_between_worker_and_store_heals() {
    let server = Redis::start();
    let proxy = proxy_to(&server);
    let store = behind(&proxy);
    let lease = lease_of(claim(&store, request(0)).await.unwrap());
    proxy.partition();
    for _ in 0..3 {
        let error = complete(&store, lease).await.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
    }
    proxy.heal();
    assert_eq!(answered(async || complete(&store, lease).await).await, Completion::Completed);
}

#[tokio::test]
async fn a_silent_server_is_a_timeout_and_not_a_slow_death() {
    let server = Redis::start();
    let store = open(&config(&server.url()).response_timeout(Duration::from_millis(300)));
    let lease = lease_of(claim(&store, request(0)).await.unwrap());
    server.pause(true);
    let since = Instant::now();
    let error = complete(&store, lease).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    assert!(since.elapsed() < Duration::from_secs(10));
    server.pause(false);
    let after = answered(async || complete(&store, lease).await).await;
    assert!(matches!(after, Completion::Completed | Completion::Repeated), "{after:?}");
}

#[tokio::test]
async fn a_slow_answer_of_two_seconds_is_waited_for() {
    let server = Redis::start();
    let store = open(&config(&server.url()));
    let _ = lease_of(claim(&store, request(0)).await.unwrap());
    server.pause(true);
    let waits = tokio::spawn({
        let store = store.clone();
        async move { claim(&store, request(1)).await }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.pause(false);
    let _ = lease_of(waits.await.unwrap().unwrap());
}

#[tokio::test]
async fn calls_that_are_dropped_leave_the_connection_in_order() {
    let server = Redis::start();
    let store = open(&config(&server.url()));
    let _ = lease_of(claim(&store, request(0)).await.unwrap());
    for n in 0..200 {
        let (scope, terms, request) = (scope(), terms(), [request(n)]);
        let call = store.claim(&scope, &terms, &request);
        let _ = tokio::time::timeout(Duration::from_micros(n % 10 * 30), call).await;
    }
    let requests: Vec<_> = (1_000..1_500).map(request).collect();
    for (request, answer) in requests.iter().zip(store.claim(&scope(), &terms(), &requests).await) {
        assert_eq!(lease_of(answer.unwrap()).key, request.key, "an answer went astray");
    }
}

#[tokio::test]
async fn a_damaged_record_fails_alone() {
    let server = Redis::start();
    let store = open(&config(&server.url()).prefix("damaged"));
    let leases: Vec<_> = [1, 2, 3, 4].map(request).to_vec();
    let claims = store.claim(&scope(), &terms(), &leases).await;
    let leases: Vec<_> = claims.into_iter().map(|claim| completion(lease_of(claim.unwrap()))).collect();
    // The second of four, in the order of the server: a form of a later version, and a truncated one.
    let damage = |value: &str| {
        let script = "local names = redis.call('KEYS', 'damaged:{*') table.sort(names) \
                      redis.call('SET', names[2], ARGV[1], 'KEEPTTL') return 1";
        server.cli(&["EVAL", script, "0", value]);
    };
    for value in ["\u{9}later", "\u{1}short", "", "12x"] {
        damage(value);
        let answers = store.complete(&scope(), &leases).await;
        let failed: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
        assert_eq!(failed.len(), 1, "{value:?}");
        assert_eq!(failed[0].kind(), ErrorKind::Corrupt);
    }
}

/// Writes invalid numbers into the record of a key: a number of 0xff bytes at an offset.
const SPOIL: &str = "local names = redis.call('KEYS', 'numbers:{*') table.sort(names) \
    local value = redis.call('GET', names[2]) local at, count = tonumber(ARGV[1]), tonumber(ARGV[2]) \
    redis.call('SET', names[2], value:sub(1, at) .. string.rep('\\255', count) .. value:sub(at + count + 1), 'KEEPTTL') \
    return 1";

#[tokio::test]
async fn numbers_that_no_record_has_are_damage_of_their_key_alone() {
    let server = Redis::start();
    let store = open(&config(&server.url()).prefix("numbers"));
    // The layout of a record: form and flags, then seven bytes for each time and fence, then four for each count.
    let numbers =
        [(2, 1), (4, 1), (5, 1), (6, 7), (13, 7), (20, 7), (27, 7), (34, 7), (41, 7), (48, 4), (52, 4)];
    for (round, (at, count)) in (0_u64..).zip(numbers) {
        let requests = [1, 2, 3].map(|number| request(round * 10 + number)).to_vec();
        let claims = store.claim(&scope(), &terms(), &requests).await;
        let done: Vec<_> = claims.into_iter().map(|claim| completion(lease_of(claim.unwrap()))).collect();
        server.cli(&["EVAL", SPOIL, "0", &at.to_string(), &count.to_string()]);
        let asked = store.claim(&scope(), &terms(), &requests).await;
        let spoilt: Vec<_> = asked.into_iter().filter_map(Result::err).map(|error| error.kind()).collect();
        assert_eq!(spoilt, [ErrorKind::Corrupt], "claimed with {count} bytes at {at}");
        // The completion by its owner may repair the record; the other records are not affected.
        let answers = store.complete(&scope(), &done).await;
        let spoilt: Vec<_> = answers.into_iter().filter_map(Result::err).map(|error| error.kind()).collect();
        assert!(
            matches!(spoilt[..], [] | [ErrorKind::Corrupt]),
            "completed with {count} bytes at {at}: {spoilt:?}"
        );
        let forgotten = server.cli(&[
            "EVAL",
            "for _, name in ipairs(redis.call('KEYS', 'numbers:{*')) do redis.call('DEL', name) end return 1",
            "0",
        ]);
        assert!(forgotten.contains('1'), "{forgotten}");
    }
    // A completion in digits: the largest that Redis accepts as a number, and some that it does not.
    for digits in ["9223372036854775807", "9007199254740992000", "99999999999999999999999"] {
        let _ = lease_of(claim(&store, request(500)).await.unwrap());
        let script = "redis.call('SET', redis.call('KEYS', 'numbers:{*')[1], ARGV[1], 'KEEPTTL') return 1";
        server.cli(&["EVAL", script, "0", digits]);
        assert_eq!(claim(&store, request(500)).await.unwrap_err().kind(), ErrorKind::Corrupt, "{digits}");
        server.cli(&["EVAL", "redis.call('DEL', redis.call('KEYS', 'numbers:{*')[1]) return 1", "0"]);
    }
}

#[tokio::test]
async fn the_fence_outlives_a_forget_even_if_the_clock_was_set_back() {
    let server = Redis::start();
    let store = open(&config(&server.url()).prefix("future"));
    let _ = lease_of(claim(&store, request(1)).await.unwrap());
    // As if the claim had been issued with the clock 1,000 s ahead: 1,000,000,000 µs more in the bytes of the fence.
    let script = "local name = redis.call('KEYS', 'future:{*')[1] \
                  local value = redis.call('GET', name) \
                  local fence = struct.unpack('>I7', value, 7) + 1000000000 \
                  redis.call('SET', name, value:sub(1, 6) .. struct.pack('>I7', fence) .. value:sub(14), 'KEEPTTL') \
                  return string.format('%.0f', fence)";
    let fence: u64 = server.cli(&["EVAL", script, "0"]).trim().trim_matches('"').parse().unwrap();
    for _ in 0..3 {
        assert!(store.forget(&scope(), &[support::key(1)]).await.pop().unwrap().unwrap());
        let next = lease_of(claim(&store, request(1)).await.unwrap());
        assert!(next.fence > fence, "{} after {fence}", next.fence);
    }
}

/// Forwards the replies of the server, and replaces their content while `garbles`.
async fn garbling(server: &Redis, garbles: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let to = server.address();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = TcpStream::connect(to).await.unwrap().into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            let garbles = Arc::clone(&garbles);
            tokio::spawn(async move {
                let mut bytes = vec![0; 1 << 16];
                while let Ok(length @ 1..) = from_server.read(&mut bytes).await {
                    let reply = &mut bytes[..length];
                    if garbles.load(Ordering::SeqCst)
                        && let (Some(b'$'), Some(head)) =
                            (reply.first(), reply.iter().position(|byte| *byte == b'\n'))
                    {
                        reply[head + 1..length - 2].fill(b'z');
                    }
                    if to_client.write_all(reply).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

/// An invalid reply says nothing about any record: reported as an unreadable record, it would repeat the effect.
#[tokio::test]
async fn a_reply_that_cannot_be_understood_is_unknown_and_its_repeat_tells() {
    let server = Redis::start();
    let garbles = Arc::new(AtomicBool::new(false));
    let url = garbling(&server, Arc::clone(&garbles)).await;
    let store = open(&config(&url).prefix("garbled"));
    let lease = lease_of(claim(&store, request(1)).await.unwrap());
    garbles.store(true, Ordering::SeqCst);
    let error = store.complete(&scope(), &[completion(lease)]).await.remove(0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error:?}");
    assert!(
        error.is_retryable() && error.to_string().contains("not what this version's scripts answer"),
        "{error}"
    );
    garbles.store(false, Ordering::SeqCst);
    let again = store.complete(&scope(), &[completion(lease)]).await.remove(0).unwrap();
    assert_eq!(again, Completion::Repeated, "it had been applied");
}
