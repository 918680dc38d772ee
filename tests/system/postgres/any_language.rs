//! Handlers in another language that write to the store's database themselves, and end their transaction with
//! `SELECT onceward.complete(token)`: exactly one row for each key, whichever process is killed.

use std::process::Command;

use onceward_test_servers::postgres::Postgres;
use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::orders::Orders;
use onceward_test_support::process::until;
use serde_json::json;

use super::table::Table;
use crate::pair::{Waiting, killed_in_turn, scene, stop, without_source};
use crate::rabbitmq::on;
use crate::rabbitmq::queue::Queue;
use crate::stage::PATIENCE;

/// Debian's, which finds the packages that scripts/setup installs.
const PYTHON: &str = "/usr/bin/python3";
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/handlers/postgres.py");

/// A role that may do what the example says it needs, in the schema that the example names.
fn application(server: &Postgres) -> String {
    server.sql(
        "CREATE ROLE app LOGIN; CREATE TABLE charges (id text NOT NULL, amount bigint NOT NULL); \
         GRANT SELECT, INSERT ON charges TO app; GRANT USAGE ON SCHEMA onceward TO app; \
         GRANT EXECUTE ON FUNCTION onceward.complete(text) TO app",
    );
    let address = server.address();
    format!("host={} port={} dbname=postgres user=app", address.ip(), address.port())
}

#[test]
fn a_handler_in_python_under_kills_leaves_exactly_one_row_for_each_key() {
    let queue = Queue::declare("python", &[]);
    let server = Postgres::start();
    let orders = Orders::with_copies(2_000, 600, &json!({"amount": 7}), &mut Chance::new());
    queue.publish(&orders.lines);
    let store = Table::create(&server, "onceward").store(on(&queue, without_source()));
    let scene = scene(&store);
    assert_eq!(scene.execute(&["migrate", "onceward.toml"]).code(), Some(0));
    let database = application(&server);
    let command = vec![PYTHON.to_owned(), EXAMPLE.to_owned(), database.clone()];
    scene.configure(&store.set("handler.worker.command", command).set("retry.max_attempts", 20));
    let count = || server.sql("SELECT count(*) FROM charges").parse().expect("a count");
    let kills = kills(10);
    let running = killed_in_turn(&scene, orders.ids.len(), kills, count, || {
        // Some processes of the handler die in the middle of their own transactions, too.
        server.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'");
    });
    until("an empty queue", PATIENCE, || queue.is_empty());
    stop(running);
    let found = server.sql("SELECT id FROM charges ORDER BY id COLLATE \"C\"");
    let mut expected: Vec<_> = orders.ids.iter().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);

    // A token is good for one transaction: not for a second one, and not after another claim.
    let key = server
        .sql("SELECT encode(key || owner, 'hex') || lpad(to_hex(fence), 16, '0') FROM onceward.keys LIMIT 1");
    let again = format!("INSERT INTO charges VALUES ('again', 1); SELECT onceward.complete('{key}')");
    let told =
        Command::new("psql").args([&format!("{database} sslmode=disable"), "-X", "-c", &again]).output();
    let told = String::from_utf8(told.expect("psql").stderr).expect("text");
    assert!(told.contains("the claim of this token is not held"), "{told}");
    assert_eq!(server.sql("SELECT count(*) FROM charges WHERE id = 'again'"), "0");
}
