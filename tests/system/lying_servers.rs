//! Tests with servers and handlers that lie, by fault, by malice, or because a relay in between does: the program
//! survives, keeps its memory bounded, reconnects to them, and continues once they tell the truth. The adapters' own tests
//! (`lying.rs`) have more lies.

use onceward_test_servers::lying::amqp::{self, Lie as AmqpLie};
use onceward_test_servers::lying::postgres::{self as lying_postgres, Lie as PostgresLie};
use onceward_test_servers::lying::relay::Relay;
use onceward_test_servers::lying::{Liar, http, redis as lying_redis};
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::process::peak_memory;
use onceward_test_servers::redis::Redis;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::{self, Orders};
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::json;

use crate::kafka::setup as kafka;
use crate::kafka::topic::Topic;
use crate::pair::{LONG, Waiting, scene as empty, stop, without_source};
use crate::postgres::table::Table;
use crate::stage::{PATIENCE, each, scene, worker};

/// Far more than any of these runs needs, far less than a lie announces or sends.
const MOST_MEMORY: u64 = 700 << 20;

fn assert_bounded(running: &Running, what: &str) {
    let peak = peak_memory(&running.id().to_string()).expect("it runs");
    assert!(peak < MOST_MEMORY, "{what}: {peak} bytes");
}

/// Waits for the end of a run that takes little memory until then, whatever its messages come to.
fn ends_in_bounds(mut running: Running, what: &str) {
    let id = running.id().to_string();
    let mut peak = 0;
    until("it ends", LONG, || {
        peak = peak.max(peak_memory(&id).unwrap_or_default());
        !running.is_running()
    });
    assert!(peak > 0 && peak < MOST_MEMORY, "{what}: {peak} bytes");
    let ended = running.wait_within(PATIENCE);
    assert!(matches!(ended.code(), Some(0 | 3)), "{what}: {ended:#?}");
}

/// The program reconnects to a liar again and again, survives, and ends when it is asked to.
fn outlives(setup: &Setup, liar: &Liar, what: &str) {
    let scene = empty(setup);
    let mut running = scene.run();
    until("it comes back", LONG, || liar.accepted() >= 3);
    assert!(running.is_running(), "{what}: {}", running.stderr());
    assert_bounded(&running, what);
    running.terminate();
    let ended = running.wait_within(PATIENCE);
    assert!(matches!(ended.code(), Some(0 | 1)), "{what}: {ended:#?}");
}

/// A run with many messages, whose store is behind `relay`, gets lies in the middle and then no longer.
fn goes_on(setup: &Setup, relay: &Relay, lies: &[&[u8]]) {
    let orders = Orders::with_copies(300, 50, &json!({"ms": 20}), &mut Default::default());
    let scene = scene(setup, &orders.lines);
    let mut running = scene.run();
    for (round, lie) in lies.iter().enumerate() {
        let least = 30 * (round + 1);
        until("effects", LONG, || scene.count(Kind::Effect).len() >= least);
        let before = relay.told();
        relay.lie(Some(lie));
        until("lies", LONG, || relay.told() >= before + 3);
        assert!(running.is_running(), "{lie:?}: {}", running.stderr());
        relay.lie(None);
    }
    assert_bounded(&running, "the lies");
    let ended = running.wait_within(LONG);
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}

/// A lapse would be another story.
fn patient(setup: Setup, store: &str) -> Setup {
    setup
        .set(&format!("store.{store}.lease"), "60s")
        .set(&format!("store.{store}.timeout"), "2s")
        .set("retry.max_attempts", 1)
}

#[test]
fn postgres_may_lie_in_the_middle() {
    let relay = Relay::to(Postgres::shared().address());
    let table = Table::create(Postgres::shared(), "lied_about");
    let setup = patient(table.store(worker()), "postgres");
    let url = format!("{}?sslmode=disable", Postgres::url_at(relay.address(), "postgres"));
    let lies: [&[u8]; 4] =
        [b"Z\0\0\0\0", b"D\0\0\0\x06\0\x01", b"D\0\0\0\x0a\0\x01\x7f\xff\xff\xff", b"HTTP/1.1 400\r\n\r\n"];
    goes_on(&setup.set("store.postgres.url", url), &relay, &lies);
}

#[test]
fn redis_may_lie_in_the_middle() {
    let relay = Relay::to(Redis::shared().address());
    let setup = patient(worker().without("store.sqlite"), "redis")
        .set("scope", "lied-about")
        .set("store.redis.url", format!("redis://{}", relay.address()));
    let lies: [&[u8]; 5] =
        [b"*2147483647\r\n", b"$99999999999\r\n", b"*-7\r\n", b"+", b"HTTP/1.1 400\r\n\r\n"];
    goes_on(&setup, &relay, &lies);
}

#[test]
fn a_postgres_that_never_tells_the_truth_is_asked_again() {
    for lie in [
        PostgresLie::Length(b'R', 0, false),
        PostgresLie::First(b"S\0\0\0\x05x"),
        PostgresLie::Answer(b"D\0\0\0\x06\0\x01"),
    ] {
        let liar = lying_postgres::start(lie);
        let url = format!("postgres://app@{}/db?sslmode=disable", liar.address());
        let setup = worker().without("store.sqlite").set("store.postgres.url", url);
        outlives(&setup.set("source.file.follow", true), &liar, &format!("{lie:?}"));
    }
}

#[test]
fn a_redis_that_never_tells_the_truth_is_asked_again() {
    for (first, again) in [(&b"$99999999999\r\n"[..], &b"x"[..]), (b"", b"*1\r\n"), (b"+", b"x")] {
        let liar = lying_redis::start(first, again);
        let url = format!("redis://{}", liar.address());
        let setup = worker().without("store.sqlite").set("store.redis.url", url);
        outlives(&setup.set("source.file.follow", true), &liar, &String::from_utf8_lossy(first));
    }
}

#[test]
fn a_rabbitmq_that_never_tells_the_truth_is_asked_again() {
    for lie in [
        AmqpLie::DeepProperties(20_000),
        AmqpLie::LongFrame(u32::MAX),
        AmqpLie::LongMessage(1 << 63),
        AmqpLie::TooManyMessages,
    ] {
        let liar = amqp::start(lie);
        let url = format!("amqp://guest:guest@{}/%2f", liar.address());
        let setup = without_source().set("source.rabbitmq.url", url).set("source.rabbitmq.queue", "q");
        outlives(&setup, &liar, &format!("{lie:?}"));
    }
}

#[test]
fn a_rabbitmq_without_a_limit_for_frames_is_no_reason_to_end() {
    for frame_max in [0, u32::MAX, 1] {
        let liar = amqp::start(AmqpLie::Tune(2047, frame_max, 60));
        let url = format!("amqp://guest:guest@{}/%2f", liar.address());
        let setup = without_source()
            .set("source.rabbitmq.url", url)
            .set("source.rabbitmq.queue", "q")
            .set("key.from", vec!["payload-hash"])
            .without("handler")
            .set("handler.exec.command", vec!["sh", "-c", "cat > handled"]);
        let scene = empty(&setup);
        let mut running = scene.run();
        until("the message is handled", LONG, || {
            std::fs::read_to_string(scene.path("handled")).is_ok_and(|text| text == "hello")
        });
        assert!(running.is_running(), "{frame_max}: {}", running.stderr());
        assert_bounded(&running, "frame_max");
        stop(vec![running]);
    }
}

#[test]
fn an_sqs_whose_answers_have_no_end_is_asked_again() {
    for (first, again) in [
        ("HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\n\r\n", "{\"Messages\":[ "),
        ("HTTP/1.1 500 Oops\r\nContent-Length: 99999999999\r\n\r\n", "x"),
        ("HTTP/1.1 200 OK\r\n", "X-Header: y\r\n"),
    ] {
        let liar = http::start(first, again);
        let endpoint = format!("http://{}", liar.address());
        let setup = without_source()
            .set("source.sqs.queue_url", format!("{endpoint}/1/q"))
            .set("source.sqs.region", "r")
            .set("source.sqs.endpoint", endpoint);
        outlives(&setup, &liar, first);
    }
}

#[test]
fn a_handler_whose_answers_have_no_end_fails_its_messages_alone() {
    for (first, again) in [
        ("HTTP/1.1 200 OK\r\n\r\n", "x"),
        ("HTTP/1.1 500 Oops\r\n\r\n", "x"),
        ("HTTP/1.1 200 OK\r\n", "X-Header: y\r\n"),
        ("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"),
    ] {
        let liar = http::start(first, again);
        let setup = worker()
            .without("handler")
            .set("handler.http.url", format!("http://{}/", liar.address()))
            .set("handler.http.timeout", "2s")
            .set("retry.max_attempts", 1);
        let scene = scene(&setup, &[orders::order("a", &json!({})), orders::order("b", &json!({}))]);
        ends_in_bounds(scene.run(), first);
        assert!(liar.accepted() >= 1, "nobody asked");
    }
}

/// A script as a handler that reads its message and does this.
fn script(scene: &Scene, text: &str) -> Vec<String> {
    scene.write("handler.sh", text.as_bytes());
    vec!["sh".to_owned(), "handler.sh".to_owned()]
}

#[test]
fn what_handlers_say_without_an_end_takes_no_memory() {
    let flood = "head -c 1000000000 /dev/zero | tr '\\0' x";
    for (handler, text) in [
        ("exec", format!("{flood}; {flood} >&2")),
        ("worker", format!("while read -r line; do {flood} >&2; {flood}; done")),
    ] {
        let scene = Scene::new(crate::stage::ONCEWARD);
        let command = script(&scene, &text);
        let setup = worker().without("handler").set(&format!("handler.{handler}.command"), command);
        scene
            .configure(&setup.set(&format!("handler.{handler}.timeout"), "30s").set("retry.max_attempts", 1));
        scene
            .write("orders.ndjson", &onceward_test_support::scene::joined(&[orders::order("a", &json!({}))]));
        ends_in_bounds(scene.run(), handler);
    }
}

#[test]
fn a_handler_behind_kafka_inherits_none_of_its_pipes() {
    let topic = Topic::create("inherited", 1);
    topic.publish(&[orders::order("a", &json!({"lane": "a"}))]);
    let command = vec!["sh".to_owned(), "-c".into(), "ls /proc/self/fd > fds".into()];
    let scene = empty(&kafka(&topic).without("handler").set("handler.exec.command", command));
    let running = scene.run();
    let open = || std::fs::read_to_string(scene.path("fds")).unwrap_or_default();
    until("a run", LONG, || open().lines().count() >= 4);
    // The last one is the directory that ls itself reads.
    assert_eq!(open().split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    let own = format!("/proc/{}/fd", running.id());
    assert!(std::fs::read_dir(own).expect("it runs").count() > 15, "Kafka's client has no pipes any more");
    stop(vec![running]);
}
