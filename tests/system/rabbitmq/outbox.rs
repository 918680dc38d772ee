//! The outbox in Postgres, emptied by `onceward outbox relay` into a queue: what commits arrives, under an id that stays the
//! same, in the order of its key, whoever is killed; and has one effect behind that queue.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use onceward::failpoints::Step;
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::proxy::Proxy;
use onceward_test_servers::rabbitmq::url;
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::Orders;
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use super::queue::Queue;
use super::setup;
use crate::pair::{LONG, Waiting, scene, stop, with_redis};
use crate::stage::{PATIENCE, each};

const LANES: usize = 16;
const SIGABRT: i32 = 6;

/// A schema of its own with effects beside the outbox, and the scene of those who work on it.
struct Office {
    schema: &'static str,
    to: Queue<'static>,
    scene: Scene,
}

impl Office {
    /// `schema` is also the name of the queue that events come from; they go to another.
    fn open(schema: &'static str, change: impl FnOnce(Setup) -> Setup) -> (Self, Queue<'static>) {
        let (from, to) = (Queue::declare(schema, &[]), Queue::declare(&format!("{schema}.out"), &[]));
        // Effect and event in one statement; neither table refuses a second one.
        let statement = format!(
            "WITH effect AS (INSERT INTO {schema}.effects (id) VALUES ($1::jsonb ->> 'id')) \
             INSERT INTO {schema}.outbox (destination, order_key, payload) \
             VALUES ('{}', convert_to($1::jsonb ->> 'lane', 'UTF8'), convert_to(($1::jsonb)::text, 'UTF8'))",
            to.name
        );
        let setup = setup(&from)
            .without("store.sqlite")
            .without("handler.worker")
            .set("guarantee", "effectively-once")
            .set("store.postgres.url", Postgres::shared().url("postgres"))
            .set("store.postgres.schema", schema)
            .set("store.postgres.lease", "2s")
            .set("store.postgres.timeout", "1500ms")
            .set("handler.sql.statement", statement)
            .set("retry.max_attempts", 20);
        let scene = scene(&change(setup));
        let migrated = scene.tell(&["migrate", "onceward.toml"]);
        assert_eq!(migrated.code(), Some(0), "{migrated:#?}");
        Postgres::shared().sql(&format!("CREATE TABLE {schema}.effects (id text NOT NULL)"));
        (Self { schema, to, scene }, from)
    }

    fn sql(&self, sql: &str) -> String {
        Postgres::shared().sql(&sql.replace('@', self.schema))
    }

    fn relay(&self) -> Running {
        self.scene.start(&mut self.scene.command(&["outbox", "relay", "onceward.toml"]))
    }

    fn relay_with(&self, plan: &str) -> Running {
        let mut command = self.scene.command(&["outbox", "relay", "onceward.toml"]);
        self.scene.start(command.env("ONCEWARD_FAILPOINTS", plan))
    }

    /// Puts events into the outbox, one transaction for each round of the lanes.
    fn put(&self, rounds: usize) {
        for round in 0..rounds {
            self.sql(&format!(
                "INSERT INTO @.outbox (destination, order_key, payload) SELECT '{}', convert_to('lane ' || n, 'UTF8'), \
                 convert_to(jsonb_build_object('id', n || '-' || {round})::text, 'UTF8') \
                 FROM generate_series(1, {LANES}) AS n",
                self.to.name
            ));
        }
    }

    fn waiting(&self) -> usize {
        self.sql("SELECT count(*) FROM @.outbox WHERE published_at IS NULL").parse().expect("a number")
    }

    /// Every row has arrived under its id and with its payload, nothing else has, and the first arrivals of each order key
    /// are in the order of commits. Answers how many copies there are.
    fn assert_all_arrived(&self) -> usize {
        let rows = self.sql(
            "SELECT json_build_array(id, convert_from(order_key, 'UTF8'), convert_from(payload, 'UTF8')) \
             FROM @.outbox ORDER BY seq",
        );
        let (mut expected, mut order) = (BTreeMap::new(), BTreeMap::<String, Vec<String>>::new());
        for row in rows.lines() {
            let [id, lane, payload]: [String; 3] = serde_json::from_str(row).expect("three texts");
            order.entry(lane.clone()).or_default().push(id.clone());
            expected.insert(id, (lane, payload));
        }
        let (mut seen, mut arrived) = (HashSet::new(), BTreeMap::<String, Vec<String>>::new());
        let messages = self.to.look();
        for (id, payload) in &messages {
            let (lane, sent) = expected.get(id).unwrap_or_else(|| panic!("{id} was never put in"));
            assert_eq!(sent.as_bytes(), payload, "{id}");
            if seen.insert(id) {
                arrived.entry(lane.clone()).or_default().push(id.clone());
            }
        }
        assert_eq!(seen.len(), expected.len(), "events are lost");
        for (lane, ids) in &order {
            assert!(arrived[lane] == *ids, "the first arrivals of {lane} are not in the order of commits");
        }
        messages.len() - seen.len()
    }
}

fn lines(orders: &Orders) -> Vec<String> {
    let in_lane = |line: &String| {
        let mut order: Value = serde_json::from_str(line).expect("an order is JSON");
        let number: usize = order["id"].as_str().expect("an id")[6..].parse().expect("a number");
        order["lane"] = format!("lane {}", number % LANES).into();
        order.to_string()
    };
    orders.lines.iter().map(in_lane).collect()
}

#[test]
fn effects_and_events_agree_under_kills_of_workers_and_relays() {
    let (office, from) = Office::open("events", |setup| setup);
    let orders = Orders::with_copies(5_000, 1_000, &json!({}), &mut Chance::new());
    from.publish(&lines(&orders));
    let (mut chance, kills) = (Chance::new(), kills(10));
    let mut workers = vec![office.scene.run(), office.scene.run()];
    let mut relays = vec![office.relay(), office.relay()];
    for kill in 0..kills {
        let least = orders.ids.len() * (kill + 1) / (kills + 2);
        until("events", LONG, || office.to.ready() >= least);
        std::thread::sleep(chance.millis(0..30));
        let (running, again) = match kill % 3 {
            0 => (&mut workers, office.scene.run()),
            _ => (&mut relays, office.relay()),
        };
        assert_eq!(running.remove(0).kill().signal(), Some(9));
        running.push(again);
    }
    until("an empty queue", LONG, || from.is_empty());
    until("an empty outbox", LONG, || office.waiting() == 0);
    stop(workers);
    stop(relays);

    let effects = office.sql("SELECT id FROM @.effects ORDER BY id COLLATE \"C\"");
    assert_eq!(
        effects.lines().collect::<Vec<_>>(),
        orders.ids.iter().map(String::as_str).collect::<Vec<_>>()
    );
    let events = office.sql("SELECT count(*), count(DISTINCT id) FROM @.outbox");
    assert_eq!(events, format!("{0}|{0}", orders.ids.len()));
    let copies = office.assert_all_arrived();
    let distinct: BTreeSet<_> = office.to.look().into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(distinct.len(), orders.ids.len());

    let behind = scene(
        &with_redis(setup(&office.to), Redis::shared())
            .set("scope", "behind-the-outbox")
            .set("key.from", vec!["message-id"]),
    );
    let running = behind.run();
    until("an empty queue", LONG, || office.to.is_empty());
    stop(vec![running]);
    assert_eq!(behind.count(Kind::Effect), each(&orders.ids, 1), "with {copies} copies");
}

#[test]
fn a_relay_that_dies_at_any_step_loses_nothing_and_sends_again_only_what_it_had_not_noted() {
    let (office, _) = Office::open("relay_steps", |setup| setup);
    for step in Step::RELAY {
        office.put(4);
        let died = office.relay_with(&format!("{}:1:abort", step.name())).wait_within(PATIENCE);
        assert_eq!(died.signal(), Some(SIGABRT), "{}: {died:#?}", step.name());
        let relay = office.relay();
        until("an empty outbox", PATIENCE, || office.waiting() == 0);
        stop(vec![relay]);
        let copies = office.assert_all_arrived();
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
fn rows_of_a_relay_that_hangs_are_sent_by_another() {
    let (office, _) = Office::open("relay_hangs", |setup| setup);
    office.put(4);
    let hangs = office.relay_with(&format!("{}:1:hang", Step::RelayTaken.name()));
    let locked = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' \
                  AND query LIKE '%relay_hangs%'";
    until("the rows are taken", PATIENCE, || office.sql(locked) == "1");
    let relay = office.relay();
    // One whose order key nobody holds does not wait.
    office.sql(
        "INSERT INTO @.outbox (destination, order_key, payload) VALUES ('relay_hangs.out', 'free', '{}')",
    );
    until("the free one", PATIENCE, || office.to.ready() >= 1);
    until("an empty outbox", PATIENCE, || office.waiting() == 0);
    stop(vec![relay]);
    assert_eq!(office.assert_all_arrived(), 0);
    assert_eq!(hangs.kill().signal(), Some(9));
}

#[test]
fn lost_confirms_bring_copies_under_the_same_ids_and_lose_nothing() {
    let proxy = Proxy::start(Queue::declare("warm-up", &[]).broker.address()).expect("a proxy");
    let by_proxy = |setup: Setup| setup.set("outbox.rabbitmq.url", url(proxy.port()));
    let (office, _) = Office::open("lost_confirms", by_proxy);
    office.put(60);
    let relay = office.relay();
    until("some events", PATIENCE, || office.to.ready() >= 3 * LANES);
    proxy.drop_replies();
    until("an empty outbox", PATIENCE, || office.waiting() == 0);
    stop(vec![relay]);
    assert!(office.assert_all_arrived() > 0, "no confirm was lost");
}

#[test]
fn a_row_that_cannot_be_routed_holds_back_its_own_key_and_status_says_why() {
    let (office, _) = Office::open("unroutable", |setup| setup);
    office.sql(
        "INSERT INTO @.outbox (id, destination, order_key, payload) VALUES ('event-1', 'unroutable.late', 'lane 1', '{}')",
    );
    office.put(3);
    let relay = office.relay();
    until("the others", PATIENCE, || office.waiting() == 4);
    let told = || office.scene.tell(&["outbox", "status", "onceward.toml", "--json"]);
    until("it failed", PATIENCE, || told().stdout.contains("there is no queue unroutable.late"));
    let status: Value = serde_json::from_str(&told().stdout).expect("JSON");
    assert_eq!((&status["waiting"], &status["failing"]), (&json!(4), &json!(1)), "{status:#}");
    assert_eq!(status["worst"][0]["id"], "event-1");
    assert_eq!(status["kept"], 3 * LANES - 3);
    let text = office.scene.tell(&["outbox", "status", "onceward.toml"]);
    assert!(text.stdout.contains("(event-1) to unroutable.late: "), "{text:#?}");

    let late = Queue::declare("unroutable.late", &[]);
    until("an empty outbox", PATIENCE, || office.waiting() == 0);
    stop(vec![relay]);
    assert_eq!(late.look()[0].0, "event-1");
    assert_eq!(office.to.look().len(), 3 * LANES);
}

#[test]
fn a_store_without_an_outbox_is_refused_in_one_sentence() {
    let queue = Queue::declare("no-outbox", &[]);
    let scene = scene(&with_redis(setup(&queue), Redis::shared()));
    for command in ["relay", "status"] {
        let told = scene.tell(&["outbox", command, "onceward.toml"]);
        assert_eq!(told.code(), Some(78), "{told:#?}");
        assert!(told.stderr.contains("use [store.postgres]"), "{told:#?}");
    }
}
