//! Round trips of a message that comes alone: one to the store for its claim, and one for its completion.

use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::redis::Redis;
use onceward_test_support::effects::Kind;
use onceward_test_support::process::until;
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;

use crate::pair::{Waiting, scene, stop, with_redis, without_source};
use crate::postgres::table::Table;
use crate::rabbitmq;
use crate::rabbitmq::queue::Queue;
use crate::stage::PATIENCE;

/// The fewest requests of a message, of several: a worker also removes expired keys and opens connections.
fn of_a_message(setup: &Setup, queue: &Queue<'_>, requests: impl Fn() -> u64) -> u64 {
    // No lease is renewed meanwhile, and no record expires.
    let scene = scene(&setup.clone().set("pipeline.ordering", "none"));
    let running = scene.run();
    // Opens connections, and makes scripts and statements known.
    handled(&scene, queue, "first");
    let of_next = |id: &&str| {
        let before = requests();
        handled(&scene, queue, id);
        requests() - before
    };
    let fewest = ["second", "third", "fourth"].iter().map(of_next).min().expect("three");
    stop(vec![running]);
    fewest
}

/// Its handler has run, and it is acknowledged.
fn handled(scene: &Scene, queue: &Queue<'_>, id: &str) {
    queue.publish(&[format!("{{\"id\":\"{id}\"}}")]);
    until("an effect", PATIENCE, || scene.count(Kind::Effect).contains_key(id));
    until("an acknowledgement", PATIENCE, || queue.is_empty());
}

#[test]
fn redis_is_asked_twice() {
    let redis = Redis::start();
    let queue = Queue::declare("round-trips-redis", &[]);
    // Of the whole server; each look is a request as well.
    let requests = || redis.info("total_reads_processed").parse().expect("a number");
    let look = {
        let first: u64 = requests();
        requests() - first
    };
    let setup = with_redis(rabbitmq::on(&queue, without_source()), &redis).set("store.redis.lease", "60s");
    assert_eq!(of_a_message(&setup, &queue, requests) - look, 2);
}

#[test]
fn postgres_is_asked_twice() {
    let server = Postgres::start_with(&["log_statement=all"]);
    let queue = Queue::declare("round-trips-postgres", &[]);
    let table = Table::create(&server, "round_trips");
    let setup = table.store(rabbitmq::on(&queue, without_source())).set("store.postgres.lease", "60s");
    let migrated = scene(&setup).execute(&["migrate", "onceward.toml"]);
    assert_eq!(migrated.code(), Some(0), "{migrated:#?}");
    let is_request = |line: &&str| line.contains("execute ") || line.contains("statement: ");
    let requests = || server.log().lines().filter(is_request).count() as u64;
    assert_eq!(of_a_message(&setup, &queue, requests), 2, "{}", server.log());
}
