//! Effects with events in one database, relays that send the events, and what must hold whichever process is killed.

use std::collections::{BTreeMap, HashSet};

use onceward_test_servers::postgres::Postgres;
use onceward_test_support::chance::Chance;
use onceward_test_support::ledger::Produced;
use onceward_test_support::orders::Orders;
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use crate::pair::{LONG, Waiting, scene, stop};

pub(crate) const LANES: usize = 16;

/// The database with effects and outbox. Neither table refuses a second row.
#[derive(Clone, Copy)]
pub(crate) enum Books {
    /// In this schema of the server that the tests share.
    Postgres(&'static str),
    /// In the scene's file.
    Sqlite,
}

/// A consumer's books, and the scene of the workers and relays.
pub(crate) struct Office {
    books: Books,
    destination: String,
    pub(crate) scene: Scene,
}

impl Office {
    /// `setup` has the source; events go to `destination`.
    pub(crate) fn open(books: Books, setup: Setup, destination: &str) -> Self {
        let setup = setup
            .without("store")
            .without("handler")
            .set("guarantee", "effectively-once")
            .set("retry.max_attempts", 20);
        let setup = match books {
            // Effect and event in one statement.
            Books::Postgres(schema) => setup
                .set("store.postgres.url", Postgres::shared().url("postgres"))
                .set("store.postgres.schema", schema)
                .set("store.postgres.lease", "2s")
                .set("store.postgres.timeout", "1500ms")
                .set(
                    "handler.sql.statement",
                    format!(
                        "WITH effect AS (INSERT INTO {schema}.effects (id) VALUES ($1::jsonb ->> 'id')) \
                         INSERT INTO {schema}.outbox (destination, order_key, payload) VALUES \
                         ('{destination}', convert_to($1::jsonb ->> 'lane', 'UTF8'), convert_to(($1::jsonb)::text, 'UTF8'))"
                    ),
                ),
            // The event is a trigger's.
            Books::Sqlite => setup
                .set("store.sqlite.path", "onceward.db")
                .set("store.sqlite.lease", "4s")
                .set("store.sqlite.timeout", "3s")
                .set("handler.sql.timeout", "2s")
                .set("handler.sql.statement", "INSERT INTO effects (id, payload) VALUES ($1 ->> 'id', $1)"),
        };
        let office = Self { books, destination: destination.to_owned(), scene: scene(&setup) };
        let migrated = office.scene.execute(&["migrate", "onceward.toml"]);
        assert_eq!(migrated.code(), Some(0), "{migrated:#?}");
        match books {
            Books::Postgres(_) => drop(office.sql("CREATE TABLE @.effects (id text NOT NULL)")),
            Books::Sqlite => office.scene.database().execute(&format!(
                "CREATE TABLE effects (id TEXT NOT NULL, payload TEXT NOT NULL); \
                 CREATE TRIGGER event AFTER INSERT ON effects BEGIN \
                   INSERT INTO onceward_outbox (destination, order_key, payload) VALUES \
                   ('{destination}', CAST(NEW.payload ->> 'lane' AS BLOB), CAST(NEW.payload AS BLOB)); \
                 END"
            )),
        }
        office
    }

    /// `@` is replaced by the schema in Postgres.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let Books::Postgres(schema) = self.books else { panic!("these books are a file") };
        Postgres::shared().sql(&sql.replace('@', schema))
    }

    pub(crate) fn relay(&self) -> Running {
        self.scene.start(&mut self.scene.command(&["outbox", "relay", "onceward.toml"]))
    }

    pub(crate) fn relay_with(&self, plan: &str) -> Running {
        let mut command = self.scene.command(&["outbox", "relay", "onceward.toml"]);
        self.scene.start(command.env("ONCEWARD_FAILPOINTS", plan))
    }

    /// Puts events into the outbox, one transaction for each round of the lanes.
    pub(crate) fn put(&self, rounds: usize) {
        let destination = &self.destination;
        for round in 0..rounds {
            match self.books {
                Books::Postgres(_) => drop(self.sql(&format!(
                    "INSERT INTO @.outbox (destination, order_key, payload) \
                     SELECT '{destination}', convert_to('lane ' || n, 'UTF8'), \
                     convert_to(jsonb_build_object('id', n || '-' || {round})::text, 'UTF8') \
                     FROM generate_series(1, {LANES}) AS n"
                ))),
                Books::Sqlite => self.scene.database().execute(&format!(
                    "INSERT INTO onceward_outbox (destination, order_key, payload) \
                     SELECT '{destination}', CAST('lane ' || n AS BLOB), \
                     CAST(json_object('id', n || '-' || {round}) AS BLOB) \
                     FROM (WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {LANES}) SELECT n FROM c)"
                )),
            }
        }
    }

    /// Events that are not published.
    pub(crate) fn waiting(&self) -> usize {
        let waiting = match self.books {
            Books::Postgres(_) => self
                .sql("SELECT count(*) FROM @.outbox WHERE published_at IS NULL")
                .parse()
                .expect("a number"),
            Books::Sqlite => self
                .scene
                .database()
                .number("SELECT count(*) FROM onceward_outbox WHERE published_at IS NULL"),
        };
        usize::try_from(waiting).expect("a count")
    }

    /// Id, order key and payload of all events, in the order of commits.
    fn events(&self) -> Vec<[String; 3]> {
        let rows = match self.books {
            Books::Postgres(_) => self
                .sql(
                    "SELECT json_build_array(id, convert_from(order_key, 'UTF8'), convert_from(payload, 'UTF8')) \
                     FROM @.outbox ORDER BY seq",
                )
                .lines()
                .map(str::to_owned)
                .collect(),
            Books::Sqlite => self.scene.database().texts(
                "SELECT json_array(id, CAST(order_key AS TEXT), CAST(payload AS TEXT)) FROM onceward_outbox ORDER BY seq",
            ),
        };
        rows.iter().map(|row| serde_json::from_str(row).expect("three texts")).collect()
    }

    fn effects(&self) -> Vec<String> {
        match self.books {
            Books::Postgres(_) => self
                .sql("SELECT id FROM @.effects ORDER BY id COLLATE \"C\"")
                .lines()
                .map(str::to_owned)
                .collect(),
            Books::Sqlite => self.scene.database().texts("SELECT id FROM effects ORDER BY id"),
        }
    }

    /// Two workers and two relays, killed in turn, until all of `orders` has left the source and the outbox; each order has
    /// exactly one effect and one event then. `arrived` returns how many events have arrived.
    pub(crate) fn work_under_kills(
        &self,
        from: &impl Waiting,
        orders: &Orders,
        kills: usize,
        arrived: impl Fn() -> usize,
    ) {
        let mut chance = Chance::new();
        from.publish(&in_lanes(orders));
        let mut workers = vec![self.scene.run(), self.scene.run()];
        let mut relays = vec![self.relay(), self.relay()];
        for kill in 0..kills {
            let least = orders.ids.len() * (kill + 1) / (kills + 2);
            until("events", LONG, || arrived() >= least);
            std::thread::sleep(chance.millis(0..30));
            let (running, again) = match kill % 3 {
                0 => (&mut workers, self.scene.run()),
                _ => (&mut relays, self.relay()),
            };
            assert_eq!(running.remove(0).kill().signal(), Some(9));
            running.push(again);
        }
        until("an empty source", LONG, || from.is_empty());
        until("an empty outbox", LONG, || self.waiting() == 0);
        stop(workers);
        stop(relays);

        assert_eq!(self.effects(), orders.ids);
        let events = self.events();
        let ids: HashSet<_> = events.iter().map(|[id, ..]| id).collect();
        assert_eq!((events.len(), ids.len()), (orders.ids.len(), orders.ids.len()));
    }

    /// Every event has arrived under its id and with its payload, nothing else has, and the first arrivals of each order key
    /// are in the order of commits. `messages` are ids and payloads. Answers how many copies there are.
    pub(crate) fn assert_all_arrived(&self, messages: &[(String, Vec<u8>)]) -> usize {
        let (mut expected, mut order) = (BTreeMap::new(), BTreeMap::<String, Vec<String>>::new());
        for [id, lane, payload] in self.events() {
            order.entry(lane.clone()).or_default().push(id.clone());
            expected.insert(id, (lane, payload));
        }
        let (mut seen, mut arrived) = (HashSet::new(), BTreeMap::<String, Vec<String>>::new());
        for (id, payload) in messages {
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

    /// The messages that a consumer behind the relays has to process, in the order of each lane.
    pub(crate) fn produced(&self) -> Vec<Produced> {
        let produced = self.events().into_iter().map(|[_, lane, payload]| {
            let order: Value = serde_json::from_str(&payload).expect("an order is JSON");
            let key = order["id"].as_str().expect("an id").to_owned();
            Produced { key, order_key: Some(lane), confirmed: true }
        });
        produced.collect()
    }
}

/// The lines of `orders`, each with its lane. In a lane they begin in the order of their numbers.
fn in_lanes(orders: &Orders) -> Vec<String> {
    let in_lane = |line: &String| {
        let mut order: Value = serde_json::from_str(line).expect("an order is JSON");
        let number: usize = order["id"].as_str().expect("an id")[6..].parse().expect("a number");
        order["lane"] = json!(format!("lane {}", number % LANES));
        order.to_string()
    };
    orders.lines.iter().map(in_lane).collect()
}
