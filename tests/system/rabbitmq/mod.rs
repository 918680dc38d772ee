//! RabbitMQ queues, with the keys in Redis and in SQLite: two programs at once, under kills and outages, and among hostile
//! producers.

mod bridge;
mod duplicates;
mod edges;
mod hostile;
mod outbox;
pub(crate) mod queue;
mod redis_trouble;
mod replies;

use std::time::{Duration, Instant};

use lapin::types::AMQPValue;
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::Chance;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::{self, Orders};
use onceward_test_support::process::until;
use onceward_test_support::setup::Setup;
use serde_json::json;

use crate::order;
use crate::pair::{
    Waiting, nothing_is_lost_and_only_what_was_in_flight_is_doubled, pending, scene, stop,
    the_order_of_each_key_is_kept, with_redis, without_source,
};
use crate::stage::{PATIENCE, each, ids_of, ledger};
use queue::Queue;

const PREFETCH: u16 = 50;

fn setup(queue: &Queue<'_>) -> Setup {
    on(queue, without_source())
}

/// With `queue` as the source.
pub(crate) fn on(queue: &Queue<'_>, setup: Setup) -> Setup {
    setup
        .set("source.rabbitmq.url", queue.broker.url())
        .set("source.rabbitmq.queue", queue.name.as_str())
        .set("source.rabbitmq.prefetch", i64::from(PREFETCH))
}

#[test]
fn two_programs_with_redis_lose_nothing_under_kills() {
    let queue = Queue::declare("kills-redis", &[]);
    nothing_is_lost_and_only_what_was_in_flight_is_doubled(
        &queue,
        &with_redis(setup(&queue), Redis::shared()).set("scope", "kills"),
        5_000,
    );
}

#[test]
fn two_programs_with_sqlite_lose_nothing_under_kills() {
    let queue = Queue::declare("kills-sqlite", &[("x-queue-type", AMQPValue::LongString("quorum".into()))]);
    nothing_is_lost_and_only_what_was_in_flight_is_doubled(&queue, &setup(&queue), 5_000);
}

#[test]
fn a_program_paused_beyond_its_lease_is_fenced_and_its_late_acks_harm_nobody() {
    let queue = Queue::declare("pause", &[]);
    let orders = Orders::with_copies(1_200, 600, &json!({"ms": 20}), &mut Chance::new());
    queue.publish(&orders.lines);
    let setup = with_redis(setup(&queue), Redis::shared()).set("scope", "pause");
    let scene = scene(&setup.set("store.redis.lease", "3s"));
    let running = vec![scene.run(), scene.run()];
    until("effects", PATIENCE, || scene.count(Kind::Effect).len() >= 150);
    running[0].stop();
    let excused = pending(&scene);
    let others = orders.ids.len() - usize::from(PREFETCH);
    // Three leases; the other program has what the paused one does not hold.
    std::thread::sleep(Duration::from_secs(9));
    until("the other's effects", PATIENCE, || scene.count(Kind::Effect).len() >= others);
    running[0].go_on();
    until("all effects", PATIENCE, || scene.count(Kind::Effect).len() == orders.ids.len());
    until("an empty queue", PATIENCE, || queue.is_empty());
    let excused = ids_of(&scene, &excused);
    stop(running);
    let ledger = ledger(&scene, &orders.ids);
    ledger.verify(&excused);
}

#[test]
fn a_long_retry_waits_in_a_queue_of_the_brokers_and_runs_then() {
    let queue = Queue::declare("waits", &[]);
    let orders = Orders::with_copies(60, 20, &json!({"do": "fail", "times": 1}), &mut Chance::new());
    queue.publish(&orders.lines);
    let setup = with_redis(setup(&queue), Redis::shared())
        .set("scope", "waits")
        .set("source.rabbitmq.wait_queues_from", "1s")
        .set("retry.initial", "1600ms")
        .set("retry.max", "1600ms")
        .set("retry.jitter", "none");
    let scene = scene(&setup);
    let running = scene.run();
    until("all effects", PATIENCE, || scene.count(Kind::Effect).len() == orders.ids.len());
    let (ready, unacknowledged) = queue.broker.depth("waits.wait.1600ms");
    assert!(ready + unacknowledged == 0 && queue.depth().0 == 0, "some wait that have had their effect");
    stop(vec![running]);
    assert_eq!(scene.count(Kind::Start), each(&orders.ids, 2));
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
    until("an empty queue", PATIENCE, || queue.is_empty());
}

#[test]
fn a_single_active_consumer_keeps_the_order_of_each_key_under_kills() {
    let queue = Queue::declare("lanes", &[("x-single-active-consumer", AMQPValue::Boolean(true))]);
    let setup = with_redis(setup(&queue), Redis::shared())
        .set("scope", "lanes")
        .set("source.rabbitmq.single_active_consumer", true)
        .set("pipeline.ordering", "key")
        .set("pipeline.order_by", "json:/lane");
    the_order_of_each_key_is_kept(&queue, &setup, order::LANES, 100);
}

#[test]
fn while_redis_is_down_no_handler_starts_and_nothing_is_acked_or_redelivered() {
    const OUTAGE: Duration = Duration::from_secs(30);
    // One redelivery too many, and the broker drops the message.
    let arguments = [
        ("x-queue-type", AMQPValue::LongString("quorum".into())),
        ("x-delivery-limit", AMQPValue::LongInt(1)),
    ];
    let queue = Queue::declare("outage", &arguments);
    let mut redis = Redis::start();
    let orders = Orders::with_copies(1_500, 300, &json!({"ms": 5}), &mut Chance::new());
    queue.publish(&orders.lines);
    let scene = scene(&with_redis(setup(&queue), &redis));
    let running = scene.run();
    until("effects", PATIENCE, || scene.count(Kind::Effect).len() >= 200);
    redis.kill();
    // Runs that had begun end.
    std::thread::sleep(Duration::from_secs(2));
    let (runs, depth) = (scene.count(Kind::Start), queue.depth());
    let began = Instant::now();
    while began.elapsed() < OUTAGE {
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(scene.count(Kind::Start), runs, "a handler started without a claim");
        assert_eq!(queue.depth(), depth, "something was acked or given back");
    }
    redis.start_again();
    until("all effects", PATIENCE, || scene.count(Kind::Effect).len() == orders.ids.len());
    stop(vec![running]);
    assert_eq!(scene.count(Kind::Start), each(&orders.ids, 1), "a handler ran again");
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
    until("an empty queue", PATIENCE, || queue.is_empty());
}

#[test]
fn dead_letters_go_to_a_queue_and_check_and_status_see_both() {
    let (queue, dead) = (Queue::declare("parts", &[]), Queue::declare("parts.dead", &[]));
    let lines = [orders::order("well", &json!({})), orders::order("ill", &json!({"do": "permanent"}))];
    queue.publish(&lines);
    let setup = with_redis(setup(&queue), Redis::shared())
        .set("scope", "parts")
        .set("policy.on_exhausted", "dead-letter")
        .set("dead_letter.to", dead.name.as_str());
    let scene = scene(&setup);
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(0), "{checked:#?}");
    assert!(checked.stdout.contains("rabbitmq:parts answers, 2 messages, 0 consumers"), "{checked:#?}");
    assert!(checked.stdout.contains("parts.dead is there, 0 dead letters"), "{checked:#?}");

    let ended = scene.execute(&["run", "onceward.toml", "--until-empty"]);
    assert_eq!((ended.code(), ended.summary("handled")), (Some(3), 1), "{ended:#?}");
    assert_eq!(ended.summary("dead-lettered"), 1, "{ended:#?}");
    assert_eq!((queue.depth(), dead.depth()), ((0, 0), (1, 0)));
    let status = scene.execute(&["status", "onceward.toml"]);
    assert!(status.stdout.contains("1 in parts.dead"), "{status:#?}");

    scene.configure(&setup.set("source.rabbitmq.queue", "nowhere"));
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(checked.stdout.contains("inspect queue nowhere"), "{checked:#?}");
}
