//! From one queue to another with `[handler.publish.rabbitmq]`, under kills: everything arrives, and what arrives twice
//! has the same id, so that it has one effect behind the second queue.

use std::collections::{BTreeMap, BTreeSet};

use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::Orders;
use onceward_test_support::process::until;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use super::queue::Queue;
use super::{PREFETCH, setup};
use crate::pair::{LONG, Waiting, scene, stop, with_redis};
use crate::stage::{PATIENCE, each};

fn bridge(from: &Queue<'_>, to: &Queue<'_>) -> Setup {
    with_redis(setup(from), Redis::shared())
        .without("handler.worker")
        .set("scope", "bridge")
        .set("handler.publish.rabbitmq.url", to.broker.url())
        .set("handler.publish.rabbitmq.routing_key", to.name.as_str())
}

/// The ids under which each order arrived, once for each time.
fn arrived(to: &Queue<'_>) -> BTreeMap<String, Vec<String>> {
    let mut arrived = BTreeMap::<String, Vec<String>>::new();
    for (id, payload) in to.look() {
        let order: Value = serde_json::from_slice(&payload).expect("an order is JSON");
        let order = order["id"].as_str().expect("an id").to_owned();
        arrived.entry(order).or_default().push(id);
    }
    arrived
}

#[test]
fn everything_arrives_in_the_other_queue_under_kills_and_has_one_effect_behind_it() {
    let (from, to) = (Queue::declare("bridge.from", &[]), Queue::declare("bridge.to", &[]));
    let orders = Orders::with_copies(8_000, 2_000, &json!({}), &mut Chance::new());
    from.publish(&orders.lines);
    let first = scene(&bridge(&from, &to));
    let (mut chance, kills) = (Chance::new(), kills(8));
    let mut running = vec![first.run(), first.run()];
    for kill in 0..kills {
        let least = orders.ids.len() * (kill + 1) / (kills + 2);
        until("messages on the other side", LONG, || to.ready() >= least);
        std::thread::sleep(chance.millis(0..30));
        assert_eq!(running.remove(0).kill().signal(), Some(9));
        running.push(first.run());
    }
    until("an empty queue", LONG, || from.is_empty());
    stop(running);

    let arrived = arrived(&to);
    assert_eq!(arrived.keys().collect::<Vec<_>>(), orders.ids.iter().collect::<Vec<_>>());
    let mut ids = BTreeSet::new();
    for (order, copies) in &arrived {
        assert!(copies.iter().all(|id| *id == copies[0] && id.len() == 32), "{order}: {copies:?}");
        assert!(ids.insert(copies[0].clone()), "{order} bears the id of another");
    }
    let copies = arrived.values().map(Vec::len).sum::<usize>() - arrived.len();
    assert!(copies <= kills * usize::from(PREFETCH), "{copies} copies after {kills} kills");

    let second = scene(
        &with_redis(setup(&to), Redis::shared())
            .set("scope", "behind-the-bridge")
            .set("key.from", vec!["message-id"]),
    );
    let running = second.run();
    until("an empty queue", LONG, || to.is_empty());
    stop(vec![running]);
    assert_eq!(second.count(Kind::Effect), each(&orders.ids, 1));
}

#[test]
fn a_bridge_to_a_queue_that_is_not_there_is_refused_before_a_message_is_taken() {
    let (from, to) = (Queue::declare("bridge.lonely", &[]), Queue::declare("bridge.there", &[]));
    from.publish(&[json!({"id": "1"}).to_string()]);
    let setup = bridge(&from, &to).set("scope", "lonely");
    let scene = scene(&setup.clone().set("handler.publish.rabbitmq.routing_key", "bridge.nowhere"));
    let ended = scene.run().wait_within(PATIENCE);
    assert_eq!(ended.code(), Some(78), "{ended:#?}");
    assert!(ended.stderr.contains("inspect queue bridge.nowhere"), "{ended:#?}");
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(checked.stdout.contains("handler.publish.rabbitmq: "), "{checked:#?}");
    assert_eq!(from.depth(), (1, 0));
    scene.configure(&setup);
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert!(checked.stdout.contains("its broker responds and has the destination"), "{checked:#?}");
}

#[test]
fn a_target_that_is_gone_for_a_while_uses_no_attempt() {
    let (from, to) = (Queue::declare("bridge.patient", &[]), Queue::declare("bridge.gone", &[]));
    let setup = bridge(&from, &to)
        .set("scope", "gone")
        .set("retry.max_attempts", 2)
        .set("retry.initial", "10ms")
        .set("retry.max", "20ms");
    let scene = scene(&setup);
    let running = scene.run();
    until("it consumes", PATIENCE, || from.consumers() == 1);
    to.delete();
    let orders = Orders::with_copies(100, 0, &json!({}), &mut Chance::new());
    from.publish(&orders.lines);
    // Two attempts would be used up within a second.
    let outage = if std::env::var_os("SLOW").is_some() { 120 } else { 8 };
    std::thread::sleep(std::time::Duration::from_secs(outage));
    let to = Queue::declare("bridge.gone", &[]);
    until("an empty queue", LONG, || from.is_empty());
    stop(vec![running]);
    let arrived = arrived(&to);
    assert_eq!(arrived.keys().collect::<Vec<_>>(), orders.ids.iter().collect::<Vec<_>>());
}
