//! The outbox, emptied by `onceward outbox relay` into a topic: the order key is the record key, and messages sent
//! twice have the same id.

use onceward_test_support::chance::{Chance, kills, size};
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::Orders;
use onceward_test_support::process::until;
use serde_json::json;

use super::setup;
use super::topic::Topic;
use crate::office::{Books, Office};
use crate::pair::{LONG, Waiting, scene, stop, without_source};
use crate::stage::{PATIENCE, each, ledger_of};

fn arrived(topic: &Topic<'_>) -> usize {
    let ends = topic.ends().unwrap_or_default();
    usize::try_from(ends.iter().sum::<i64>()).expect("a count")
}

fn ids_and_payloads(topic: &Topic<'_>) -> Vec<(String, Vec<u8>)> {
    let records = topic.records().into_iter();
    records.map(|record| (record.headers["message-id"].clone(), record.payload)).collect()
}

#[test]
fn effects_and_events_agree_under_kills_of_workers_and_relays() {
    let (from, to) = (Topic::create("events", 4), Topic::create("events.out", 4));
    let office = Office::open(Books::Postgres("kafka_events"), setup(&from), &to.name);
    let orders = Orders::with_copies(size(800, 5_000), 160, &json!({}), &mut Chance::new());
    office.work_under_kills(&from, &orders, kills(size(4, 20)), || arrived(&to));
    let copies = office.assert_all_arrived(&ids_and_payloads(&to));
    let behind = scene(&setup(&to).set("scope", "kafka-behind").set("key.from", vec!["message-id"]));
    let running = vec![behind.run(), behind.run()];
    until("all effects", LONG, || behind.count(Kind::Effect).len() == orders.ids.len());
    until("no lag", LONG, || to.is_empty());
    stop(running);
    assert_eq!(behind.count(Kind::Effect), each(&orders.ids, 1), "with {copies} copies");
    assert_eq!(ledger_of(&behind, office.produced()).out_of_order(), []);
}

#[test]
fn a_file_of_orders_may_have_its_events_in_another_cluster_which_check_looks_at() {
    let to = Topic::create("events-of-a-file", 3);
    let named = |brokers: &str| {
        without_source()
            .set("source.file.path", "orders.ndjson")
            .set("outbox.kafka.brokers", vec![brokers])
            .set("outbox.kafka.properties.client.id", "events")
    };
    let bootstrap = to.broker.bootstrap();
    let office = Office::open(Books::Sqlite, named(&bootstrap), &to.name);
    office.scene.write("orders.ndjson", b"");
    let checked = office.scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(0), "{checked:#?}");
    assert!(checked.stdout.contains("outbox.kafka: a cluster of one broker answers"), "{checked:#?}");

    office.put(5);
    let relay = office.relay();
    until("an empty outbox", PATIENCE, || office.waiting() == 0);
    stop(vec![relay]);
    assert_eq!(office.assert_all_arrived(&ids_and_payloads(&to)), 0);
    let status = office.scene.execute(&["outbox", "status", "onceward.toml"]);
    assert!(status.stdout.contains(&format!("to           kafka:{bootstrap}")), "{status:#?}");
    assert!(status.stdout.contains("kept         80 published"), "{status:#?}");

    let nobody = Office::open(Books::Sqlite, named("127.0.0.1:1"), &to.name);
    nobody.scene.write("orders.ndjson", b"");
    let checked = nobody.scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(
        checked.stdout.contains("outbox.kafka: cannot inspect the cluster: no broker is reachable"),
        "{checked:#?}"
    );
}
