//! The five ways in which a sound system makes duplicates, each made on purpose, and one effect in the end.

use std::time::Duration;

use onceward::failpoints::Step;
use onceward::{ErrorKind, Publisher};
use onceward_rabbitmq::{RabbitmqEndpoint, RabbitmqPublisher};
use onceward_test_servers::proxy::{Direction, Flow, Proxy};
use onceward_test_servers::rabbitmq::{self, RabbitMq};
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::Chance;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::{Orders, order};
use onceward_test_support::process::until;
use onceward_test_support::scene::Scene;
use serde_json::json;

use super::queue::{Queue, runtime};
use super::setup;
use crate::pair::{LONG, Waiting, pending, scene, stop, with_redis};
use crate::stage::{PATIENCE, each};

const SIGABRT: i32 = 6;

#[test]
fn a_confirm_is_lost_and_the_producer_sends_again() {
    let queue = Queue::declare("confirm-lost", &[]);
    let proxy = Proxy::start(queue.broker.address()).expect("a proxy");
    let [first, message] = ["once", "twice"].map(|id| [queue.message(&order(id, &json!({})))]);
    runtime().block_on(async {
        let producer = RabbitmqPublisher::open(RabbitmqEndpoint::new(rabbitmq::url(proxy.port()))).await;
        let producer = producer.expect("a publisher").confirm_timeout(Duration::from_secs(1));
        producer.publish(&first).await.remove(0).expect("a confirm");
        proxy.drop_replies();
        let unknown = producer.publish(&message).await.remove(0).expect_err("no confirm comes");
        assert_eq!(unknown.kind(), ErrorKind::Timeout);
        proxy.cut();
        producer.publish(&message).await.remove(0).expect("a confirm");
    });
    until("one and two copies", PATIENCE, || queue.depth() == (3, 0));

    let scene = scene(&with_redis(setup(&queue), Redis::shared()).set("scope", "confirm-lost"));
    let ended = scene.execute(&["run", "onceward.toml", "--until-empty"]);
    assert_eq!((ended.summary("handled"), ended.summary("duplicates")), (2, 1), "{ended:#?}");
    assert_eq!(scene.count(Kind::Effect), each(&["once", "twice"].map(str::to_owned), 1));
    assert!(queue.is_empty());
}

/// One message, a process that dies at `step`, and one that is started after it.
fn die_at(step: Step) -> (Scene, u64) {
    let queue = Queue::declare(&format!("dies-at-{}", step.name()), &[]);
    queue.publish(&[order("only", &json!({}))]);
    let scene = scene(&with_redis(setup(&queue), Redis::shared()).set("scope", queue.name.as_str()));
    let died = scene.run_with_crash_point(&format!("{}:1:abort", step.name())).wait_within(PATIENCE);
    assert_eq!(died.signal(), Some(SIGABRT), "{died:#?}");
    until("the message, again", PATIENCE, || queue.depth() == (1, 0));
    let running = scene.run();
    until("an empty queue", PATIENCE, || queue.is_empty());
    running.terminate();
    let ended = running.wait_within(PATIENCE);
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    (scene, ended.summary("duplicates"))
}

#[test]
fn the_process_dies_after_the_effect() {
    // The completion was written: the message is redelivered and its key is known.
    let (scene, duplicates) = die_at(Step::CompleteApplied);
    assert_eq!((scene.count(Kind::Effect), duplicates), (each(&["only".to_owned()], 1), 1));
    // It was not: this is what `deduplicated` does not promise, and `effectively-once` does (`transactions.rs`).
    let (scene, duplicates) = die_at(Step::EffectDone);
    assert_eq!((scene.count(Kind::Effect), duplicates), (each(&["only".to_owned()], 2), 0));
}

#[test]
fn acks_are_lost() {
    let queue = Queue::declare("acks-lost", &[]);
    let proxy = Proxy::start(queue.broker.address()).expect("a proxy");
    let orders = Orders::with_copies(20, 0, &json!({"ms": 500}), &mut Chance::new());
    let setup = with_redis(setup(&queue), Redis::shared())
        .set("scope", "acks-lost")
        .set("source.rabbitmq.url", rabbitmq::url(proxy.port()))
        .set("handler.worker.processes", 20)
        .set("pipeline.concurrency", 20);
    let scene = scene(&setup);
    let running = scene.run();
    until("a consumer", PATIENCE, || proxy.open() > 0);
    queue.publish(&orders.lines);
    until("runs", PATIENCE, || scene.count(Kind::Start).len() == orders.ids.len());
    proxy.set(Direction::ToServer, Flow::Drop);
    until("completions", PATIENCE, || {
        scene.count(Kind::Effect).len() == orders.ids.len() && pending(&scene).is_empty()
    });
    assert_eq!(queue.depth(), (0, 20), "no ack arrived");
    proxy.set(Direction::ToServer, Flow::Pass);
    proxy.cut();
    until("an empty queue", PATIENCE, || queue.is_empty());
    running.terminate();
    let ended = running.wait_within(PATIENCE);
    assert_eq!((ended.code(), ended.summary("duplicates")), (Some(0), 20), "{ended:#?}");
    assert_eq!(scene.count(Kind::Start), each(&orders.ids, 1), "a handler ran again");
}

#[test]
fn the_broker_is_killed_and_restarted_under_load() {
    let mut broker = RabbitMq::start();
    let orders = Orders::with_copies(2_000, 400, &json!({"ms": 2}), &mut Chance::new());
    let scene = {
        let queue = Queue::declare_on(&broker, "restarts", &[]);
        queue.publish(&orders.lines);
        scene(&with_redis(setup(&queue), Redis::shared()).set("scope", "restarts"))
    };
    let running = vec![scene.run(), scene.run()];
    for part in [4, 2] {
        until("effects", LONG, || scene.count(Kind::Effect).len() >= orders.ids.len() / part);
        broker.kill();
        broker.start_again();
    }
    until("all effects", LONG, || scene.count(Kind::Effect).len() == orders.ids.len());
    until("an empty queue", LONG, || broker.depth("restarts") == (0, 0));
    stop(running);
    // A program that had a message when the broker died continued to run, and recognises its copies.
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}

#[test]
fn a_partition_between_worker_and_broker_heals() {
    let queue = Queue::declare("partition-broker", &[]);
    let proxy = Proxy::start(queue.broker.address()).expect("a proxy");
    let orders = Orders::with_copies(1_500, 300, &json!({"ms": 3}), &mut Chance::new());
    queue.publish(&orders.lines);
    let setup = with_redis(setup(&queue), Redis::shared())
        .set("scope", "partition-broker")
        .set("source.rabbitmq.url", format!("{}?heartbeat=1", rabbitmq::url(proxy.port())));
    let scene = scene(&setup);
    let running = scene.run();
    until("effects", LONG, || scene.count(Kind::Effect).len() >= orders.ids.len() / 4);
    proxy.partition();
    // Both sides close the connection, and the broker requeues all it had delivered.
    until("the broker to give up", LONG, || queue.depth().1 == 0);
    proxy.heal();
    until("all effects", LONG, || scene.count(Kind::Effect).len() == orders.ids.len());
    until("an empty queue", PATIENCE, || queue.is_empty());
    stop(vec![running]);
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}

#[test]
fn a_partition_between_worker_and_store_heals() {
    let queue = Queue::declare("partition-store", &[]);
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address()).expect("a proxy");
    let orders = Orders::with_copies(1_500, 300, &json!({"ms": 3}), &mut Chance::new());
    queue.publish(&orders.lines);
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let setup = with_redis(setup(&queue), &redis).set("store.redis.url", url);
    let scene = scene(&setup);
    let running = scene.run();
    until("effects", LONG, || scene.count(Kind::Effect).len() >= orders.ids.len() / 4);
    proxy.partition();
    // Runs that had begun end; three leases.
    std::thread::sleep(Duration::from_secs(3));
    let (runs, depth) = (scene.count(Kind::Start), queue.depth());
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(scene.count(Kind::Start), runs, "a handler started without a claim");
    assert_eq!(queue.depth(), depth, "something was acked or given back");
    proxy.heal();
    until("all effects", LONG, || scene.count(Kind::Effect).len() == orders.ids.len());
    until("an empty queue", PATIENCE, || queue.is_empty());
    stop(vec![running]);
    // Whose completion was under way keeps its token and says it again.
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}
