//! Two versions of the program on one schema, on RabbitMQ: the next one migrates while this one works.
//!
//! With `ONCEWARD_OLD_PROGRAM` another program than this version's is the old one, such as that of an earlier release. It may
//! refuse the schema when it is restarted; its processes that run continue.

use onceward_migrations::{POSTGRES, latest};
use onceward_test_servers::postgres::Postgres;
use onceward_test_support::chance::{Chance, kills, size};
use onceward_test_support::orders::Orders;
use onceward_test_support::process::{Ended, Running, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::json;

use super::table::Table;
use crate::pair::{LONG, Waiting, without_source};
use crate::rabbitmq::on;
use crate::rabbitmq::queue::Queue;
use crate::stage::{ONCEWARD, PATIENCE};

const NEXT: &str = env!("CARGO_BIN_EXE_onceward-next");

/// Both programs, each in a folder of its own, on one queue and one schema.
struct Pair {
    old: Scene,
    next: Scene,
    /// The old program is that of an earlier release.
    is_earlier: bool,
}

impl Pair {
    fn of(setup: &Setup) -> Self {
        let earlier = std::env::var("ONCEWARD_OLD_PROGRAM").ok();
        let old = Scene::new(earlier.as_deref().unwrap_or(ONCEWARD));
        let pair = Self { old, next: Scene::new(NEXT), is_earlier: earlier.is_some() };
        pair.old.configure(setup);
        pair.next.configure(setup);
        pair
    }

    /// Starts the program of a scene again; the next one instead if an earlier release says that it cannot use the schema.
    #[allow(clippy::print_stdout)]
    fn again<'s>(&'s self, scene: &'s Scene) -> (&'s Scene, Running) {
        let mut running = scene.run();
        if !self.is_earlier || std::ptr::eq(scene, &self.next) {
            return (scene, running);
        }
        until("it runs or refuses", PATIENCE, || {
            !running.is_running() || running.stderr().contains("pipeline started")
        });
        if running.is_running() {
            return (scene, running);
        }
        let refused = running.wait_within(PATIENCE);
        assert_eq!(refused.code(), Some(78), "{refused:#?}");
        assert!(refused.stderr.contains("upgrade this program"), "{refused:#?}");
        println!("the earlier release refuses: {}", refused.stderr.trim());
        (&self.next, self.next.run())
    }

    fn version(table: &Table<'_>) -> u32 {
        table.sql("SELECT max(version) FROM @.migrations").parse().expect("a number")
    }
}

fn setup(table: &Table<'_>, queue: &Queue<'_>) -> Setup {
    table.handler(on(queue, without_source()))
}

/// How many messages a program says that it has handled, once it has drained.
fn drained(running: Running) -> (Ended, u64) {
    running.terminate();
    let ended = running.wait_within(PATIENCE);
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    let handled = ended.stderr.split("handled=").last().and_then(|rest| rest.split(' ').next()?.parse().ok());
    let handled = handled.unwrap_or_else(|| panic!("no figures: {ended:#?}"));
    (ended, handled)
}

#[test]
fn the_next_version_migrates_under_load_and_both_go_on_under_kills() {
    let table = Table::create(Postgres::shared(), "versions");
    let queue = Queue::declare("versions", &[]);
    let pair = Pair::of(&setup(&table, &queue));
    let migrated = pair.old.execute(&["migrate", "onceward.toml"]);
    assert_eq!(migrated.code(), Some(0), "{migrated:#?}");
    let before = Pair::version(&table);

    let (mut chance, kills) = (Chance::new(), kills(size(4, 20)));
    let orders = Orders::with_copies(size(2_000, 20_000), 500, &json!({"steps": 2_000}), &mut chance);
    // Work for the time before the migration and during it, for that of the kills, and for two that are there to the end.
    let third = orders.lines.len() / 3;
    let [first, second, last] =
        [&orders.lines[..third], &orders.lines[third..2 * third], &orders.lines[2 * third..]];
    queue.publish(first);
    let mut running = vec![(&pair.old, pair.old.run()), (&pair.old, pair.old.run())];
    until("effects", LONG, || table.count() > 0);
    let migrated = pair.next.execute(&["migrate", "onceward.toml"]);
    assert_eq!(migrated.code(), Some(0), "{migrated:#?}");
    assert!(Pair::version(&table) > before, "{migrated:#?}");

    // From here on one of each, both killed and restarted.
    assert_eq!(running.remove(0).1.kill().signal(), Some(9));
    running.push((&pair.next, pair.next.run()));
    for second in second.chunks(second.len().div_ceil(kills.max(1))) {
        let had = table.count();
        queue.publish(second);
        until("effects", LONG, || table.count() > had || queue.is_empty());
        std::thread::sleep(chance.millis(0..30));
        let (scene, killed) = running.remove(0);
        assert_eq!(killed.kill().signal(), Some(9), "it ended before it was killed");
        running.push(pair.again(scene));
    }
    until("both are there", PATIENCE, || queue.consumers() == 2);
    queue.publish(last);
    until("all effects", LONG, || table.count() >= orders.ids.len());
    until("an empty queue", LONG, || queue.is_empty());
    let handled: Vec<_> = running.into_iter().map(|(_, running)| drained(running)).collect();
    assert!(handled.iter().all(|(_, handled)| *handled > 0), "only one version worked: {handled:#?}");
    table.assert_exact(&orders.ids, "two versions");
}

#[test]
fn an_old_program_refuses_a_schema_that_it_cannot_use_and_loses_nothing() {
    let table = Table::create(Postgres::shared(), "too_new");
    let queue = Queue::declare("too-new", &[]);
    let pair = Pair::of(&setup(&table, &queue));
    let next = latest(POSTGRES) + 1;
    let mut migrate = pair.next.command(&["migrate", "onceward.toml"]);
    let migrated =
        pair.next.start(migrate.env("ONCEWARD_NEXT_NEEDS", next.to_string())).wait_within(PATIENCE);
    assert_eq!(migrated.code(), Some(0), "{migrated:#?}");
    let orders = Orders::with_copies(50, 10, &json!({"steps": 1}), &mut Chance::new());
    queue.publish(&orders.lines);
    for command in ["run", "migrate", "check"] {
        let told = pair.old.execute(&[command, "onceward.toml"]);
        assert_eq!(told.code(), Some(if command == "check" { 1 } else { 78 }), "{told:#?}");
        let text = format!("{}{}", told.stdout, told.stderr);
        assert!(text.contains(&format!("schema too_new has version {next}")), "{told:#?}");
        assert!(text.contains("upgrade this program"), "{told:#?}");
    }
    assert_eq!(table.count(), 0);
    until("what was not taken", PATIENCE, || queue.depth() == (orders.lines.len() as u64, 0));

    let running = pair.next.run();
    until("all effects", LONG, || table.count() >= orders.ids.len());
    until("an empty queue", LONG, || queue.is_empty());
    drained(running);
    table.assert_exact(&orders.ids, "the next version");
}
