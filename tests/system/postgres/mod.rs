//! RabbitMQ queues, with the keys in Postgres and, for a statement, the effects beside them: exactly one row for each key,
//! whatever is killed.

mod any_language;
mod outages;
pub(crate) mod table;
mod versions;

use onceward_test_servers::postgres::Postgres;
use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::orders::Orders;
use onceward_test_support::process::until;
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::json;

use crate::pair::{
    LEASE, TIMEOUT, Waiting, killed_in_turn, nothing_is_lost_and_only_what_was_in_flight_is_doubled, scene,
    stop, without_source,
};
use crate::rabbitmq::on;
use crate::rabbitmq::queue::Queue;
use crate::stage::PATIENCE;
use table::Table;

/// A statement for each message of `queue`, in the completion's transaction.
fn statement(queue: &Queue<'_>, table: &Table<'_>) -> Setup {
    // A server that closes the connection in the middle of a statement costs that attempt.
    on(queue, table.handler(without_source())).set("retry.max_attempts", 20)
}

fn orders(lines: usize) -> Orders {
    Orders::with_copies(lines, lines * 3 / 10, &json!({"steps": 5_000}), &mut Chance::new())
}

#[test]
fn twenty_kills_at_random_moments_leave_exactly_one_row_for_each_key() {
    on_a_queue(kills(20), "kills_statement", 130, |setup| setup);
}

#[test]
fn kills_leave_exactly_one_row_for_each_key_when_statements_share_transactions() {
    on_a_queue(kills(4), "kills_shared", 200, |setup| {
        setup.set("handler.sql.batch", 16).set("pipeline.concurrency", 32)
    });
}

fn on_a_queue(kills: usize, name: &str, lines: usize, with: impl FnOnce(Setup) -> Setup) {
    let queue = Queue::declare(&name.replace('_', "-"), &[]);
    let table = Table::create(Postgres::shared(), name);
    let (orders, scene) =
        exactly_one_row_under(kills, &queue, &table, lines, &with(statement(&queue, &table)));

    // Once more from the beginning: all are known.
    queue.publish(&orders.lines);
    let ended = scene.execute(&["run", "onceward.toml", "--until-empty"]);
    assert_eq!((ended.code(), ended.summary("handled")), (Some(0), 0), "{ended:#?}");
    table.assert_exact(&orders.ids, "after the copies");
}

/// Two programs on one source, killed in turn; so many lines for each kill. `setup` has the table's handler.
pub(crate) fn exactly_one_row_under(
    kills: usize,
    source: &impl Waiting,
    table: &Table<'_>,
    lines: usize,
    setup: &Setup,
) -> (Orders, Scene) {
    let orders = orders(lines * kills);
    source.publish(&orders.lines);
    let scene = scene(setup);
    let running = killed_in_turn(&scene, orders.ids.len(), kills, || table.count(), || ());
    until("an empty source", PATIENCE, || source.is_empty());
    stop(running);
    table.assert_exact(&orders.ids, "after the kills");
    (orders, scene)
}

#[test]
fn two_programs_with_postgres_lose_nothing_under_kills() {
    let queue = Queue::declare("kills-postgres", &[]);
    let table = Table::create(Postgres::shared(), "kills_worker");
    let setup = table.store(on(&queue, without_source())).set("store.postgres.lease", LEASE);
    let setup = setup.set("store.postgres.timeout", TIMEOUT);
    nothing_is_lost_and_only_what_was_in_flight_is_doubled(&queue, &setup, 5_000);
}

#[test]
fn keys_of_an_earlier_table_are_imported_and_have_no_effect_again() {
    let queue = Queue::declare("imported", &[]);
    let table = Table::create(Postgres::shared(), "imported");
    let orders = orders(40);
    let scene = scene(&statement(&queue, &table));
    let before = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(before.code(), Some(0), "{before:#?}");
    assert!(before.stdout.contains("the next run takes them"), "{before:#?}");
    assert_eq!(scene.execute(&["migrate", "onceward.toml"]).code(), Some(0));
    // What many have: a table of processed ids, with a primary key.
    table.sql("CREATE TABLE @.processed (id text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())");
    let (done, open) = orders.ids.split_at(10);
    table.sql(&format!("INSERT INTO @.processed (id) VALUES ('{}')", done.join("'), ('")));
    let lines = "SELECT json_build_object('key', id, 'completed_at', floor(extract(epoch FROM at))::bigint) FROM @.processed";
    scene.write("processed.ndjson", table.sql(lines).as_bytes());
    let told = scene.execute(&["keys", "import", "onceward.toml", "processed.ndjson"]);
    assert_eq!(told.code(), Some(0), "{told:#?}");
    assert!(told.stdout.contains("imported=10"), "{told:#?}");

    queue.publish(&orders.lines);
    let ended = scene.execute(&["run", "onceward.toml", "--until-empty"]);
    assert_eq!((ended.code(), ended.summary("handled")), (Some(0), open.len() as u64), "{ended:#?}");
    table.assert_exact(open, "after the import");
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(0), "{checked:#?}");
    assert!(checked.stdout.contains("the store accepts its statement"), "{checked:#?}");
    let status = scene.execute(&["status", "onceward.toml"]);
    assert!(status.stdout.contains(&format!("completed {}", orders.ids.len())), "{status:#?}");
}
