//! The order of partitions, which is Kafka's default, under kills: two programs, with keys in Redis and in Postgres.

use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::kills;
use onceward_test_support::ledger::Produced;
use onceward_test_support::orders::id_of;
use onceward_test_support::setup::Setup;

use super::topic::Topic;
use crate::pair::{LEASE, TIMEOUT, Waiting, orders, scene, under_kills, with_redis};
use crate::postgres::table::Table;
use crate::stage::ledger_of;

const MESSAGES: usize = 5_000;
const PARTITIONS: i32 = 8;
/// Handlers that a program runs side by side, each for another partition.
const WORKERS: usize = 4;

/// The usual settings without those of the order: its default applies.
fn setup(topic: &Topic<'_>) -> Setup {
    super::setup(topic).without("pipeline.ordering").without("pipeline.order_by")
}

#[test]
fn first_effects_of_each_partition_come_in_order_under_kills_with_redis() {
    let topic = Topic::create("partitions-redis", PARTITIONS);
    let setup = with_redis(setup(&topic), Redis::shared());
    the_order_of_each_partition_is_kept(&topic, &setup);
}

#[test]
fn first_effects_of_each_partition_come_in_order_under_kills_with_postgres() {
    let topic = Topic::create("partitions-postgres", PARTITIONS);
    let table = Table::create(Postgres::shared(), "kafka_partitions");
    let setup = table.store(setup(&topic).without("store.redis"));
    let setup = setup.set("store.postgres.lease", LEASE).set("store.postgres.timeout", TIMEOUT);
    the_order_of_each_partition_is_kept(&topic, &setup);
}

#[allow(clippy::print_stdout)]
fn the_order_of_each_partition_is_kept(topic: &Topic<'_>, setup: &Setup) {
    let kills = kills(10);
    let orders = orders(MESSAGES);
    topic.publish(&orders.lines);
    // The order is that of the offsets, copies included.
    let produced: Vec<_> =
        topic.records().into_iter().map(|record| of(&record.payload, record.place.0)).collect();
    assert_eq!(produced.len(), orders.lines.len());
    let scene = scene(setup);
    let excused = under_kills(topic, &scene, orders.ids.len(), kills);
    let ledger = ledger_of(&scene, produced);
    ledger.verify(&excused);
    assert_eq!(ledger.out_of_order(), []);
    let (claimed, doubled) = (excused.len(), ledger.doubled().len());
    println!("{}: {claimed} keys were claimed at {kills} kills, {doubled} have two effects", topic.name());
    // One for each handler, if they were claimed one by one.
    assert!(claimed > kills * 2 * WORKERS, "{claimed} keys: no kill met messages that were claimed together");
}

fn of(payload: &[u8], partition: i32) -> Produced {
    Produced { key: id_of(payload), order_key: Some(partition.to_string()), confirmed: true }
}
