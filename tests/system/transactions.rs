//! The effect in the completion's transaction: exactly one row for each key, whichever process is killed.

use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::database::Database;
use onceward_test_support::orders::Orders;
use onceward_test_support::process::until;
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, scene};

/// No unique constraint: an effect that happened twice has two rows. The count takes a while, so that kills hit it.
pub(crate) const EFFECTS: &str = "CREATE TABLE effects (id TEXT NOT NULL, worked INTEGER NOT NULL)";

const CHARGE: &str = "INSERT INTO effects (id, worked) VALUES (json_extract($1, '$.id'), \
    (WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < json_extract($1, '$.steps')) \
     SELECT count(*) FROM c))";

/// A scene whose handler inserts a row.
pub(crate) fn sql() -> Setup {
    Setup::sql(CHARGE)
}

pub(crate) fn rows(database: &mut Database) -> i64 {
    database.number("SELECT count(*) FROM effects")
}

/// Every id has its row, and none has two.
pub(crate) fn assert_exact(scene: &Scene, ids: &[String]) {
    let mut database = scene.database();
    let mut found = database.texts("SELECT id FROM effects");
    found.sort_unstable();
    let mut expected = ids.to_vec();
    expected.sort_unstable();
    assert_eq!(found.len(), expected.len(), "rows in the table of effects");
    assert_eq!(found, expected);
}

#[test]
fn twenty_kills_at_random_moments_leave_exactly_one_row_for_each_key() {
    let mut chance = Chance::new();
    let kills = kills(20);
    // Work enough for each kill.
    let times = kills.div_ceil(20);
    let orders = Orders::with_copies(1000 * times, 300 * times, &json!({"steps": 5000}), &mut chance);
    let scene = scene(&sql(), &orders.lines);
    scene.database().execute(EFFECTS);
    let mut database = scene.database();
    for kill in 0..kills {
        let most = i64::try_from((orders.ids.len() - 40) * (kill + 1) / kills).expect("a small number");
        let running = scene.run();
        until("rows", PATIENCE, || rows(&mut database) >= most - 20);
        std::thread::sleep(chance.millis(0..40));
        let ended = running.kill();
        assert_eq!(ended.signal(), Some(9), "it ended before it was killed: {ended:#?}");
    }
    let ended = scene.run_to_end();
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    assert_exact(&scene, &orders.ids);
    assert_eq!(scene.letters(), [] as [Value; 0]);

    let again = scene.run_to_end();
    assert_eq!((again.code(), again.summary("received")), (Some(0), 0));
    assert_exact(&scene, &orders.ids);
}

#[test]
fn two_programs_on_one_database_leave_exactly_one_row_for_each_key() {
    let mut chance = Chance::new();
    let orders = Orders::with_copies(400, 100, &json!({"steps": 5000}), &mut chance);
    let scene = scene(&sql(), &orders.lines);
    scene.database().execute(EFFECTS);
    scene.write("other.ndjson", &onceward_test_support::scene::joined(&orders.lines));
    scene.write("other.toml", sql().set("source.file.path", "other.ndjson").text().as_bytes());
    let both = [scene.run(), scene.run_file("other.toml")];
    let [one, other] = both.map(|running| running.wait_within(PATIENCE));
    assert_eq!((one.code(), other.code()), (Some(0), Some(0)), "{one:#?} {other:#?}");
    assert_eq!(one.summary("handled") + other.summary("handled"), 300);
    assert_exact(&scene, &orders.ids);
}

#[test]
fn a_row_is_inserted_for_the_value_that_the_key_is_of_or_for_none() {
    let setup = Setup::sql("INSERT INTO charges (id) VALUES (json_extract($1, '$.id'))");
    let lines = [
        r#"{"id":"victim","id":"r1","amount":100}"#,
        r#"{"id":"victim","id":"r2","amount":100}"#,
        r#"{"id":"r3","ID":"victim"}"#,
        r#"{"id\u0000":"victim","id":"r4"}"#,
        r#"{"id":7}"#,
        r#"{"id":7.0}"#,
        r#"{"id":7e0}"#,
        r#"{"id":70e-1}"#,
        r#"{"id":7}"#,
        r#"{"id":"x"}"#,
    ];
    let scene = scene(&setup, &lines.map(String::from));
    scene.database().execute("CREATE TABLE charges (id TEXT NOT NULL)");
    let ended = scene.run_to_end();
    let told = ["handled", "duplicates", "dead-lettered"].map(|word| ended.summary(word));
    assert_eq!((ended.code(), told), (Some(3), [2, 1, 7]), "{ended:#?}");
    let mut rows = scene.database().texts("SELECT id FROM charges");
    rows.sort_unstable();
    assert_eq!(rows, ["7", "x"]);
}
