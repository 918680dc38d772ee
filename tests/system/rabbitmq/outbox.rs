//! The outbox in Postgres and in SQLite, emptied by `onceward outbox relay` into a queue: what commits arrives, under an id
//! that stays the same, in the order of its key, whichever process is killed; and has one effect behind that queue.

use onceward::failpoints::Step;
use onceward_test_servers::proxy::Proxy;
use onceward_test_servers::rabbitmq::url;
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::{Chance, kills, size};
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::Orders;
use onceward_test_support::process::until;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use super::queue::Queue;
use super::setup;
use crate::office::{Books, LANES, Office};
use crate::pair::{LONG, Waiting, scene, stop, with_redis};
use crate::stage::{PATIENCE, each};

const SIGABRT: i32 = 6;

/// An office on a queue of this name, whose events go to another.
fn open(
    name: &'static str,
    books: Books,
    change: impl FnOnce(Setup) -> Setup,
) -> (Office, Queue<'static>, Queue<'static>) {
    let (from, to) = (Queue::declare(name, &[]), Queue::declare(&format!("{name}.out"), &[]));
    (Office::open(books, change(setup(&from)), &to.name), from, to)
}

/// With the books in a schema of that name.
fn in_postgres(
    name: &'static str,
    change: impl FnOnce(Setup) -> Setup,
) -> (Office, Queue<'static>, Queue<'static>) {
    open(name, Books::Postgres(name), change)
}

/// Two workers and two relays under kills; and a consumer behind them has each effect once.
fn effects_and_events_agree(name: &'static str, books: Books, orders: &Orders, kills: usize) {
    let (office, from, to) = open(name, books, |setup| setup);
    office.work_under_kills(&from, orders, kills, || to.ready());
    let copies = office.assert_all_arrived(&to.look());
    let behind = scene(
        &with_redis(setup(&to), Redis::shared())
            .set("scope", format!("behind-{name}"))
            .set("key.from", vec!["message-id"]),
    );
    let running = behind.run();
    until("an empty queue", LONG, || to.is_empty());
    stop(vec![running]);
    assert_eq!(behind.count(Kind::Effect), each(&orders.ids, 1), "with {copies} copies");
}

#[test]
fn effects_and_events_agree_under_kills_of_workers_and_relays() {
    let orders = Orders::with_copies(5_000, 1_000, &json!({}), &mut Chance::new());
    effects_and_events_agree("events", Books::Postgres("events"), &orders, kills(10));
}

#[test]
fn effects_and_events_in_one_file_agree_under_kills_of_workers_and_relays() {
    let orders = Orders::with_copies(size(400, 3_000), 80, &json!({}), &mut Chance::new());
    effects_and_events_agree("events-in-a-file", Books::Sqlite, &orders, kills(size(4, 20)));
}

/// Each step of a relay in turn; so many copies are there after it.
fn a_relay_dies_at_any_step(name: &'static str, books: Books) {
    let (office, _, to) = open(name, books, |setup| setup);
    for step in Step::RELAY {
        office.put(4);
        let died = office.relay_with(&format!("{}:1:abort", step.name())).wait_within(PATIENCE);
        assert_eq!(died.signal(), Some(SIGABRT), "{}: {died:#?}", step.name());
        let relay = office.relay();
        until("an empty outbox", PATIENCE, || office.waiting() == 0);
        // If the dead relay had done all, this one may hardly have begun.
        until("it catches signals", PATIENCE, || relay.stderr().contains("relay started"));
        stop(vec![relay]);
        let copies = office.assert_all_arrived(&to.look());
        match step {
            Step::RelayConfirmed => {
                assert_eq!(copies, LANES, "the first of each lane was confirmed and not noted")
            }
            // Those of the step before are still in the queue.
            Step::RelayMarked => assert_eq!(copies, LANES),
            _ => assert_eq!(copies, 0, "{}", step.name()),
        }
    }
}

#[test]
fn a_relay_that_dies_at_any_step_loses_nothing_and_sends_again_only_what_it_had_not_noted() {
    a_relay_dies_at_any_step("relay_steps", Books::Postgres("relay_steps"));
}

#[test]
fn a_relay_of_a_file_that_dies_at_any_step_loses_nothing_and_sends_again_only_what_it_had_not_noted() {
    a_relay_dies_at_any_step("relay-steps-in-a-file", Books::Sqlite);
}

#[test]
fn rows_of_a_relay_of_a_file_that_is_paused_are_sent_by_another() {
    let (office, _, to) = open("relay-paused-in-a-file", Books::Sqlite, |setup| setup);
    office.put(4);
    let paused = office.relay_with(&format!("{}:1:hang", Step::RelayTaken.name()));
    let held = "SELECT count(*) FROM onceward_outbox WHERE taken_by IS NOT NULL";
    until("the rows are taken", PATIENCE, || office.scene.database().number(held) == 16);
    paused.stop();
    let relay = office.relay();
    until("an empty outbox", PATIENCE, || office.waiting() == 0);
    stop(vec![relay]);
    assert_eq!(office.assert_all_arrived(&to.look()), 0);
    assert_eq!(paused.kill().signal(), Some(9));
}

#[test]
fn rows_of_a_relay_that_hangs_are_sent_by_another() {
    let (office, _, to) = in_postgres("relay_hangs", |setup| setup);
    office.put(4);
    let hangs = office.relay_with(&format!("{}:1:hang", Step::RelayTaken.name()));
    let locked = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' \
                  AND query LIKE '%relay_hangs%'";
    until("the rows are taken", PATIENCE, || office.sql(locked) == "1");
    let relay = office.relay();
    // A row whose order key is not locked does not wait.
    office.sql(
        "INSERT INTO @.outbox (destination, order_key, payload) VALUES ('relay_hangs.out', 'free', '{}')",
    );
    until("the free one", PATIENCE, || to.ready() >= 1);
    until("an empty outbox", PATIENCE, || office.waiting() == 0);
    stop(vec![relay]);
    assert_eq!(office.assert_all_arrived(&to.look()), 0);
    assert_eq!(hangs.kill().signal(), Some(9));
}

#[test]
fn lost_confirms_bring_copies_under_the_same_ids_and_lose_nothing() {
    let proxy = Proxy::start(Queue::declare("warm-up", &[]).broker.address()).expect("a proxy");
    let by_proxy = |setup: Setup| setup.set("outbox.rabbitmq.url", url(proxy.port()));
    let (office, _, to) = in_postgres("lost_confirms", by_proxy);
    office.put(60);
    let relay = office.relay();
    until("some events", PATIENCE, || to.ready() >= 3 * LANES);
    proxy.drop_replies();
    until("an empty outbox", PATIENCE, || office.waiting() == 0);
    stop(vec![relay]);
    assert!(office.assert_all_arrived(&to.look()) > 0, "no confirm was lost");
}

#[test]
fn a_row_that_cannot_be_routed_holds_back_its_own_key_and_status_says_why() {
    let (office, _, to) = in_postgres("unroutable", |setup| setup);
    office.sql(
        "INSERT INTO @.outbox (id, destination, order_key, payload) VALUES ('event-1', 'unroutable.late', 'lane 1', '{}')",
    );
    office.put(3);
    let relay = office.relay();
    until("the others", PATIENCE, || office.waiting() == 4);
    let told = || office.scene.execute(&["outbox", "status", "onceward.toml", "--json"]);
    until("it failed", PATIENCE, || told().stdout.contains("there is no queue unroutable.late"));
    let status: Value = serde_json::from_str(&told().stdout).expect("JSON");
    assert_eq!((&status["waiting"], &status["failing"]), (&json!(4), &json!(1)), "{status:#}");
    assert_eq!(status["worst"][0]["id"], "event-1");
    assert_eq!(status["kept"], 3 * LANES - 3);
    let text = office.scene.execute(&["outbox", "status", "onceward.toml"]);
    assert!(text.stdout.contains("(event-1) to unroutable.late: "), "{text:#?}");

    let late = Queue::declare("unroutable.late", &[]);
    until("an empty outbox", PATIENCE, || office.waiting() == 0);
    stop(vec![relay]);
    assert_eq!(late.look()[0].0, "event-1");
    assert_eq!(to.look().len(), 3 * LANES);
}

#[test]
fn a_store_without_an_outbox_is_refused_in_one_sentence() {
    let queue = Queue::declare("no-outbox", &[]);
    let scene = scene(&with_redis(setup(&queue), Redis::shared()));
    for command in ["relay", "status"] {
        let told = scene.execute(&["outbox", command, "onceward.toml"]);
        assert_eq!(told.code(), Some(78), "{told:#?}");
        assert!(told.stderr.contains("use [store.postgres]"), "{told:#?}");
    }
}
