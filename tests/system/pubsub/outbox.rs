//! The outbox, emptied by `onceward outbox relay` into a topic: the order key is the ordering key, and the id an attribute.

use onceward_test_servers::pubsub::Pubsub;
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::{Chance, kills, size};
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::Orders;
use onceward_test_support::process::until;
use serde_json::json;

use super::subscription::Subscription;
use super::{patient, setup};
use crate::office::{Books, Office};
use crate::pair::{LONG, Waiting, scene, stop, with_redis, without_source};
use crate::stage::{PATIENCE, each, ledger_of};

#[test]
fn effects_and_events_agree_under_kills_of_workers_and_relays() {
    let (from, to) = (Subscription::ordered("events"), Subscription::ordered("events-out"));
    let office = Office::open(Books::Postgres("pubsub_events"), setup(&from), &to.topic);
    let orders = Orders::with_copies(size(600, 5_000), 100, &json!({}), &mut Chance::new());
    let arrived = || usize::try_from(to.depth().0).expect("a count");
    office.work_under_kills(&from, &orders, kills(size(4, 20)), arrived);
    let behind = scene(
        &patient(with_redis(setup(&to), Redis::shared()))
            .set("scope", "pubsub-behind-the-outbox")
            .set("key.from", vec!["header:onceward-id"]),
    );
    let running = vec![behind.run(), behind.run()];
    until("an empty subscription", LONG, || to.is_empty());
    stop(running);
    assert_eq!(behind.count(Kind::Effect), each(&orders.ids, 1));
    assert_eq!(ledger_of(&behind, office.produced()).out_of_order(), []);
}

#[test]
fn a_file_of_orders_may_have_its_events_in_pubsub_which_check_looks_at() {
    let to = Subscription::create("events-of-a-file", &json!({}));
    let named = |endpoint: &str| {
        without_source()
            .set("source.file.path", "orders.ndjson")
            .set("outbox.pubsub.endpoint", endpoint)
            .set("outbox.pubsub.credentials", "anonymous")
    };
    let office = Office::open(Books::Sqlite, named(&Pubsub::shared().endpoint()), &to.topic);
    office.scene.write("orders.ndjson", b"");
    let checked = office.scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(0), "{checked:#?}");
    assert!(checked.stdout.contains("outbox.pubsub"), "{checked:#?}");
    office.put(5);
    let relay = office.relay();
    until("an empty outbox", PATIENCE, || office.waiting() == 0);
    stop(vec![relay]);
    assert_eq!(to.depth(), (80, 0));

    let unreachable = Office::open(Books::Sqlite, named("http://127.0.0.1:1"), &to.topic);
    unreachable.scene.write("orders.ndjson", b"");
    let checked = unreachable.scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(checked.stdout.contains("outbox.pubsub"), "{checked:#?}");
}
