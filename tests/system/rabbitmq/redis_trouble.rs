//! Tests of Redis in trouble: forgotten scripts, killed connections, no memory, a failover, slots that move.

use onceward_test_servers::redis::{Redis, RedisCluster, RedisReplicated, RedisSentinel};
use onceward_test_support::chance::Chance;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::Orders;
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::json;

use super::queue::Queue;
use super::setup;
use crate::pair::{LONG, Waiting, scene, stop, with_redis};
use crate::stage::{PATIENCE, each};

/// A program at work on a queue.
struct Work {
    queue: Queue<'static>,
    orders: Orders,
    scene: Scene,
    running: Running,
}

impl Work {
    fn begin(name: &str, with: impl FnOnce(Setup) -> Setup) -> Self {
        let queue = Queue::declare(name, &[]);
        let orders = Orders::with_copies(1_500, 300, &json!({"ms": 3}), &mut Chance::new());
        queue.publish(&orders.lines);
        let scene = scene(&with(setup(&queue)));
        let running = scene.run();
        Self { queue, orders, scene, running }
    }

    /// Waits until so many hundredths are done.
    fn until_done(&self, hundredths: usize) {
        let least = self.orders.ids.len() * hundredths / 100;
        until("effects", LONG, || self.scene.count(Kind::Effect).len() >= least);
    }

    fn end(self) -> (Scene, Orders) {
        self.until_done(100);
        until("an empty queue", PATIENCE, || self.queue.is_empty());
        stop(vec![self.running]);
        (self.scene, self.orders)
    }
}

#[test]
fn scripts_flushed_connections_killed_and_memory_used_up_are_not_noticed_in_the_effects() {
    let redis = Redis::start();
    let work = Work::begin("redis-trouble", |setup| with_redis(setup, &redis));
    for done in [10, 20, 30] {
        work.until_done(done);
        redis.cli(&["SCRIPT", "FLUSH"]);
    }
    for done in [40, 50, 60] {
        work.until_done(done);
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    }
    work.until_done(70);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    until("a refusal", PATIENCE, || work.running.stderr().contains("memory"));
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    let (scene, orders) = work.end();
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}

#[test]
fn slots_that_move_under_load_are_not_noticed_in_the_effects() {
    let cluster = RedisCluster::start(3);
    let nodes = cluster.urls();
    let work = Work::begin("redis-cluster", |setup| {
        with_redis(setup, &cluster.nodes()[0])
            .set("store.redis.topology", "cluster")
            .set("store.redis.nodes", nodes[1..].to_vec())
    });
    work.until_done(10);
    for slot in cluster.used_slots().into_iter().take(3) {
        cluster.move_slowly(slot);
    }
    assert!(work.scene.count(Kind::Effect).len() < work.orders.ids.len(), "it was not under load");
    let (scene, orders) = work.end();
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}

#[test]
fn a_failover_that_replicas_were_waited_for_loses_nothing() {
    let mut servers = RedisReplicated::start();
    let sentinel = RedisSentinel::start("orders", &servers.primary);
    let work = Work::begin("redis-failover", |setup| {
        with_redis(setup, &servers.primary)
            .set("store.redis.url", sentinel.url())
            .set("store.redis.topology", "sentinel")
            .set("store.redis.primary", "orders")
            .set("store.redis.wait_replicas", 1)
    });
    work.until_done(40);
    servers.primary.kill();
    until("the replica's promotion", PATIENCE, || sentinel.primary_port("orders") == servers.replica.port());
    // The program waits for a replica, and has none until the old primary has become one.
    servers.primary.start_again();
    let (scene, orders) = work.end();
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}
