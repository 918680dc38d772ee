//! A server that is stopped, refuses or is held up, while two programs run a statement for each message: others
//! continue, no effect is lost, none happens twice.

use std::time::{Duration, Instant};

use onceward_test_servers::postgres::Postgres;
use onceward_test_support::orders::{self, Orders};
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use serde_json::{Value, json};

use super::table::Table;
use super::{orders, statement};
use crate::pair::{LONG, Waiting, scene, stop};
use crate::rabbitmq::queue::Queue;
use crate::stage::PATIENCE;

/// Two programs on a queue that holds `orders`.
fn two(queue: &Queue<'_>, table: &Table<'_>, orders: &Orders) -> (Scene, Vec<Running>) {
    queue.publish(&orders.lines);
    let scene = scene(&statement(queue, table));
    let running = vec![scene.run(), scene.run()];
    (scene, running)
}

/// All have their row, and nothing is left behind.
fn ends_well(queue: &Queue<'_>, table: &Table<'_>, orders: &Orders, running: Vec<Running>, case: &str) {
    until("all rows", LONG, || table.count() >= orders.ids.len());
    until("an empty queue", PATIENCE, || queue.is_empty());
    stop(running);
    table.assert_exact(&orders.ids, case);
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    until("no open transaction", PATIENCE, || table.server.sql(open) == "0");
    assert_eq!(
        table.sql("SELECT count(*) FROM @.keys WHERE state <> 4"),
        "0",
        "{case}: keys that are not completed"
    );
}

#[test]
fn a_server_stopped_at_once_and_restarted_three_times_leaves_one_row_for_each_key() {
    let queue = Queue::declare("stopped-postgres", &[]);
    let mut server = Postgres::start();
    Table::create(&server, "stopped");
    let orders = orders(2_000);
    let (_scene, running) = two(&queue, &Table::of(&server, "stopped"), &orders);
    for part in 1..4 {
        until("rows", LONG, || Table::of(&server, "stopped").count() >= orders.ids.len() * part / 5);
        server.stop_immediate();
        server.start_again();
    }
    ends_well(&queue, &Table::of(&server, "stopped"), &orders, running, "after the restarts");
}

#[test]
fn killed_backends_leave_one_row_for_each_key() {
    let queue = Queue::declare("killed-backends", &[]);
    let server = Postgres::start();
    let table = Table::create(&server, "backends");
    let orders = orders(2_000);
    let (_scene, running) = two(&queue, &table, &orders);
    let mut killed = 0;
    for part in 1..16 {
        until("rows", LONG, || table.count() >= orders.ids.len() * part / 20);
        let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'onceward%'";
        killed += server.sql(kill).parse::<u32>().expect("a count");
    }
    assert!(killed >= 60, "only {killed} backends were killed");
    ends_well(&queue, &table, &orders, running, "after the backends");
}

#[test]
fn while_the_primary_is_read_only_nothing_starts_and_nothing_is_acked() {
    let queue = Queue::declare("read-only", &[]);
    let server = Postgres::start();
    let table = Table::create(&server, "read_only");
    let orders = orders(2_000);
    let (_scene, running) = two(&queue, &table, &orders);
    until("rows", LONG, || table.count() >= orders.ids.len() / 5);
    server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    server.sql("SELECT pg_reload_conf()");
    // Each connection applies it with a delay of its own, and transactions that had begun end.
    let mut quiet = (table.count(), Instant::now());
    until("quiet", PATIENCE, || {
        let count = table.count();
        if count != quiet.0 {
            quiet = (count, Instant::now());
        }
        quiet.1.elapsed() > Duration::from_secs(2)
    });
    assert!(quiet.0 < orders.ids.len(), "it was over before the server became read-only");
    let depth = queue.depth();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        assert_eq!(table.count(), quiet.0, "a statement ran without a claim");
        assert_eq!(queue.depth(), depth, "something was acked or given back");
        std::thread::sleep(Duration::from_millis(250));
    }
    server.sql("ALTER SYSTEM RESET default_transaction_read_only");
    server.sql("SELECT pg_reload_conf()");
    ends_well(&queue, &table, &orders, running, "after it could be written again");
}

#[test]
fn a_rival_that_holds_three_keys_for_ten_seconds_holds_up_nobody_else() {
    const HELD: Duration = Duration::from_secs(10);
    let queue = Queue::declare("rival", &[]);
    let table = Table::create(Postgres::shared(), "rival");
    let scene = scene(&statement(&queue, &table));
    let mut ids: Vec<_> = (0..600).map(|n| format!("order-{n:04}")).collect();
    let lines: Vec<_> = ids.iter().map(|id| orders::order(id, &json!({"steps": 5_000}))).collect();
    assert_eq!(scene.execute(&["migrate", "onceward.toml"]).code(), Some(0));
    // Rows of keys that are not committed yet, as a worker has them that is paused in its claim.
    let hashes = [7, 8, 300].map(|n: usize| hash(&scene, &ids[n]));
    let rows = hashes.iter().map(|hash| {
        format!(
            "INSERT INTO @.keys SELECT 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, false, '\\x{hash}', \
                 '\\x00000000000000000000000000000000', NULL, NULL, NULL;"
        )
    });
    // It holds them until this table has a row.
    table.sql("CREATE TABLE @.go (n int)");
    let waits = "DO $$ BEGIN FOR n IN 1..2400 LOOP PERFORM pg_sleep(0.05); EXIT WHEN EXISTS (SELECT FROM @.go); END LOOP; END $$";
    let rival = format!("BEGIN; {} {waits}; ROLLBACK", rows.collect::<String>());
    let began = Instant::now();
    std::thread::scope(|threads| {
        threads.spawn(|| table.sql(&rival));
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'BEGIN; INSERT%'";
        until("the rival", PATIENCE, || table.sql(sleeping) == "1");
        queue.publish(&lines);
        let running = vec![scene.run(), scene.run()];
        until("all others", PATIENCE, || table.count() >= ids.len() - hashes.len());
        std::thread::sleep(HELD.saturating_sub(began.elapsed()));
        assert_eq!(table.count(), ids.len() - hashes.len(), "a held key ran");
        table.sql("INSERT INTO @.go VALUES (1)");
        until("all", PATIENCE, || table.count() == ids.len());
        until("an empty queue", PATIENCE, || queue.is_empty());
        stop(running);
    });
    ids.sort_unstable();
    table.assert_exact(&ids, "after the rival");
}

/// The key of a message, as the store has it.
fn hash(scene: &Scene, id: &str) -> String {
    let told = scene.execute(&["keys", "get", "onceward.toml", id, "--json"]);
    let lines = told.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let hashes: Vec<_> = lines.filter_map(|line| Some(line["hash"].as_str()?.to_owned())).collect();
    assert_eq!(hashes.len(), 1, "{told:#?}");
    hashes.concat()
}
