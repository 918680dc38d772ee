//! RabbitMQ queues, with the keys in Redis and in SQLite: two programs at once, under kills and outages.

mod queue;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lapin::types::AMQPValue;
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::{self, Orders};
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use crate::order;
use crate::stage::{ONCEWARD, PATIENCE, each, ids_of, ledger, ledger_of, worker};
use queue::Queue;

/// A whole run with its kills, on a machine that has other work too.
const LONG: Duration = Duration::from_secs(240);
const PREFETCH: u16 = 50;
const DRAIN: Duration = Duration::from_secs(10);

fn setup(queue: &Queue) -> Setup {
    worker()
        .without("source.file")
        .without("dead_letter")
        .set("policy.on_exhausted", "park")
        .set("policy.on_missing_key", "reject")
        .set("policy.on_mismatch", "ack")
        .set("pipeline.drain_timeout", "10s")
        .set("source.rabbitmq.url", queue.broker.url())
        .set("source.rabbitmq.queue", queue.name.as_str())
        .set("source.rabbitmq.prefetch", i64::from(PREFETCH))
}

fn with_redis(setup: Setup, redis: &Redis) -> Setup {
    setup
        .without("store.sqlite")
        .set("store.redis.url", redis.url())
        .set("store.redis.lease", "1s")
        .set("store.redis.timeout", "800ms")
}

fn scene(setup: &Setup) -> Scene {
    let scene = Scene::new(ONCEWARD);
    scene.configure(setup);
    scene
}

/// The keys that are claimed and not completed: for them nobody knows whether the effect was had.
fn pending(scene: &Scene) -> BTreeSet<String> {
    let told =
        scene.tell(&["keys", "list", "onceward.toml", "--state", "pending", "--limit", "1000", "--json"]);
    assert_eq!(told.code(), Some(0), "{told:#?}");
    let keys = told.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON lines"));
    keys.map(|key| key["hash"].as_str().expect("the hash of a key").to_owned()).collect()
}

/// Both end in time on SIGTERM, and leave nothing behind.
fn stop(running: Vec<Running>) {
    running.iter().for_each(Running::terminate);
    for running in running {
        let ended = running.wait_within(DRAIN + Duration::from_secs(5));
        assert_eq!(ended.code(), Some(0), "{ended:#?}");
    }
}

/// Two programs, killed in turn at random moments; the keys whose effects may be doubled by that.
fn under_kills(scene: &Scene, distinct: usize, kills: usize) -> BTreeSet<String> {
    let mut chance = Chance::new();
    let mut running = vec![scene.run(), scene.run()];
    let mut excused = BTreeSet::new();
    for kill in 0..kills {
        let least = distinct * (kill + 1) / (kills + 2);
        until("effects", LONG, || scene.count(Kind::Effect).len() >= least);
        std::thread::sleep(chance.millis(0..30));
        assert_eq!(running.remove(0).kill().signal(), Some(9));
        excused.extend(pending(scene));
        running.push(scene.run());
    }
    until("all effects", LONG, || scene.count(Kind::Effect).len() >= distinct);
    // A process that was started just before a kill writes its notes just after it.
    let excused = ids_of(scene, &excused);
    stop(running);
    excused
}

/// Of every fifty one fails in its first run: 2 %.
fn orders(lines: usize) -> Orders {
    let mut orders = Orders::with_copies(lines, lines * 3 / 10, &json!({"ms": 1}), &mut Chance::new());
    let failing: BTreeSet<_> = orders.ids.iter().step_by(50).cloned().collect();
    for line in &mut orders.lines {
        let parsed: Value = serde_json::from_str(line).expect("an order is JSON");
        let id = parsed["id"].as_str().expect("an id");
        if failing.contains(id) {
            *line = orders::order(id, &json!({"ms": 1, "do": "fail", "times": 1}));
        }
    }
    orders
}

#[allow(clippy::print_stdout)]
fn nothing_is_lost_and_only_what_was_in_flight_is_doubled(queue: &Queue, setup: &Setup) {
    let kills = kills(10);
    let orders = orders(5_000);
    queue.publish(&orders.lines);
    let scene = scene(setup);
    let began = Instant::now();
    let excused = under_kills(&scene, orders.ids.len(), kills);
    let took = began.elapsed();
    let ledger = ledger(&scene, &orders.ids);
    assert!(excused.len() <= kills * 16, "{} keys were in flight at {kills} kills", excused.len());
    ledger.verify(&excused);
    until("an empty queue", PATIENCE, || queue.depth() == (0, 0));
    let undisturbed = undisturbed(queue, setup);
    // Figures for whoever asks with --nocapture; nothing is asserted on a machine with other work.
    println!("{}: {took:?} with {kills} kills, {undisturbed:?} undisturbed; a lease is 1 s", queue.name);
}

/// How long as many messages take without kills, under other keys.
fn undisturbed(queue: &Queue, setup: &Setup) -> Duration {
    let orders = orders(5_000);
    queue.publish(&orders.lines);
    let scene = scene(&setup.clone().set("scope", "undisturbed"));
    let began = Instant::now();
    let running = vec![scene.run(), scene.run()];
    until("all effects", LONG, || scene.count(Kind::Effect).len() == orders.ids.len());
    stop(running);
    let took = began.elapsed();
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
    took
}

#[test]
fn two_programs_with_redis_lose_nothing_under_kills() {
    let queue = Queue::declare("kills-redis", &[]);
    nothing_is_lost_and_only_what_was_in_flight_is_doubled(
        &queue,
        &with_redis(setup(&queue), Redis::shared()).set("scope", "kills"),
    );
}

#[test]
fn two_programs_with_sqlite_lose_nothing_under_kills() {
    let queue = Queue::declare("kills-sqlite", &[("x-queue-type", AMQPValue::LongString("quorum".into()))]);
    nothing_is_lost_and_only_what_was_in_flight_is_doubled(&queue, &setup(&queue));
}

#[test]
fn a_program_paused_beyond_its_lease_is_fenced_and_its_late_acks_harm_nobody() {
    let queue = Queue::declare("pause", &[]);
    let orders = Orders::with_copies(1_200, 600, &json!({"ms": 20}), &mut Chance::new());
    queue.publish(&orders.lines);
    let scene = scene(&with_redis(setup(&queue), Redis::shared()).set("scope", "pause"));
    let running = vec![scene.run(), scene.run()];
    until("effects", PATIENCE, || scene.count(Kind::Effect).len() >= 150);
    running[0].stop();
    let excused = pending(&scene);
    let others = orders.ids.len() - usize::from(PREFETCH);
    // Three leases; the other program has what the paused one does not hold.
    std::thread::sleep(Duration::from_secs(3));
    until("the other's effects", PATIENCE, || scene.count(Kind::Effect).len() >= others);
    running[0].go_on();
    until("all effects", PATIENCE, || scene.count(Kind::Effect).len() == orders.ids.len());
    let excused = ids_of(&scene, &excused);
    stop(running);
    let ledger = ledger(&scene, &orders.ids);
    ledger.verify(&excused);
    until("an empty queue", PATIENCE, || queue.depth() == (0, 0));
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
    until("an empty queue", PATIENCE, || queue.depth() == (0, 0));
}

#[test]
fn a_single_active_consumer_keeps_the_order_of_each_key_under_kills() {
    let queue = Queue::declare("lanes", &[("x-single-active-consumer", AMQPValue::Boolean(true))]);
    let (lines, produced) = order::lines(100);
    queue.publish(&lines);
    let setup = with_redis(setup(&queue), Redis::shared())
        .set("scope", "lanes")
        .set("source.rabbitmq.single_active_consumer", true)
        .set("pipeline.ordering", "key")
        .set("pipeline.order_by", "json:/lane");
    let scene = scene(&setup);
    under_kills(&scene, produced.len(), kills(4));
    let ledger = ledger_of(&scene, produced);
    assert_eq!((ledger.lost(), ledger.unasked()), (vec![], vec![]));
    assert_eq!(ledger.out_of_order(), []);
    until("an empty queue", PATIENCE, || queue.depth() == (0, 0));
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
    until("an empty queue", PATIENCE, || queue.depth() == (0, 0));
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
    let checked = scene.tell(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(0), "{checked:#?}");
    assert!(checked.stdout.contains("rabbitmq:parts answers, 2 messages, 0 consumers"), "{checked:#?}");
    assert!(checked.stdout.contains("parts.dead is there, 0 dead letters"), "{checked:#?}");

    let ended = scene.tell(&["run", "onceward.toml", "--until-empty"]);
    assert_eq!((ended.code(), ended.summary("handled")), (Some(3), 1), "{ended:#?}");
    assert_eq!(ended.summary("dead-lettered"), 1, "{ended:#?}");
    assert_eq!((queue.depth(), dead.depth()), ((0, 0), (1, 0)));
    let status = scene.tell(&["status", "onceward.toml"]);
    assert!(status.stdout.contains("1 in parts.dead"), "{status:#?}");

    scene.configure(&setup.set("source.rabbitmq.queue", "nowhere"));
    let checked = scene.tell(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(checked.stdout.contains("look at queue nowhere"), "{checked:#?}");
}
