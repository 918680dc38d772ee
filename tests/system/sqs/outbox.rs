//! The outbox, emptied by `onceward outbox relay` into a FIFO queue: the order key is the group, and the id is the one by
//! which SQS recognises copies.

use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::{Chance, kills, size};
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::Orders;
use onceward_test_support::process::until;
use serde_json::json;

use super::queue::{Queue, REGION};
use super::{patient, setup};
use crate::office::{Books, Office};
use crate::pair::{LONG, Waiting, scene, stop, with_redis, without_source};
use crate::stage::{PATIENCE, each, ledger_of};

#[test]
fn effects_and_events_agree_under_kills_of_workers_and_relays() {
    let (from, to) = (Queue::create("events.fifo", &[]), Queue::create("events-out.fifo", &[]));
    let office = Office::open(Books::Postgres("sqs_events"), setup(&from), &to.url);
    let orders = Orders::with_copies(size(600, 5_000), 100, &json!({}), &mut Chance::new());
    let arrived = || usize::try_from(to.depth().0).expect("a count");
    office.work_under_kills(&from, &orders, kills(size(4, 20)), arrived);
    // A confirm that a kill swallowed is repeated under the same deduplication id, and so is no second message.
    assert_eq!(to.depth(), (orders.ids.len() as u64, 0));
    let behind = scene(
        &patient(with_redis(setup(&to), Redis::shared()))
            .set("scope", "sqs-behind-the-outbox")
            .set("key.from", vec!["header:onceward-id"]),
    );
    let running = vec![behind.run(), behind.run()];
    until("an empty queue", LONG, || to.is_empty());
    stop(running);
    assert_eq!(behind.count(Kind::Effect), each(&orders.ids, 1));
    assert_eq!(ledger_of(&behind, office.produced()).out_of_order(), []);
}

#[test]
fn a_file_of_orders_may_have_its_events_in_sqs_which_check_looks_at() {
    let to = Queue::create("events-of-a-file", &[]);
    let named = |endpoint: &str| {
        without_source()
            .set("source.file.path", "orders.ndjson")
            .set("outbox.sqs.region", REGION)
            .set("outbox.sqs.endpoint", endpoint)
    };
    let office = Office::open(Books::Sqlite, named(&ElasticMq::shared().endpoint()), &to.url);
    office.scene.write("orders.ndjson", b"");
    let checked = office.scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(0), "{checked:#?}");
    assert!(checked.stdout.contains("outbox.sqs: SQS answers"), "{checked:#?}");
    office.put(5);
    let relay = office.relay();
    until("an empty outbox", PATIENCE, || office.waiting() == 0);
    stop(vec![relay]);
    assert_eq!(to.depth(), (80, 0));

    let nobody = Office::open(Books::Sqlite, named("http://127.0.0.1:1"), &to.url);
    nobody.scene.write("orders.ndjson", b"");
    let checked = nobody.scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(checked.stdout.contains("outbox.sqs: cannot list SQS queues"), "{checked:#?}");
}
