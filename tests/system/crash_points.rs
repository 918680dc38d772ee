//! Death at every step of the protocol: the process aborts there, is started again, and the ledger must add up.

use std::collections::BTreeSet;
use std::sync::Mutex;

use onceward::failpoints::Step;
use onceward_test_servers::postgres::Postgres;
use onceward_test_support::effects::Kind;
use onceward_test_support::ledger::Produced;
use onceward_test_support::orders::order;
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use crate::postgres::table::Table;
use crate::stage::{PATIENCE, exec, ids_of, in_flight, ledger_of, letter_id, scene, worker};
use crate::transactions::{EFFECTS, sql};

/// Concurrent scenes: most of their time they wait for a lease to end.
const AT_A_TIME: usize = 8;

/// Long enough for a busy machine to renew it in time: a lapse in the middle of a run is another story.
const LEASE: &str = "2s";

const SIGABRT: i32 = 6;

/// A kind of handler, and the steps that its messages never pass in a run to the end of a file.
struct Kinds {
    name: &'static str,
    setup: fn() -> Setup,
    never: &'static [Step],
    effects: Effects,
}

/// Where the effects of a kind are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Effects {
    /// In the ledger, by the handler's own hand.
    Ledger,
    /// In a table beside the store's, in SQLite.
    Sqlite,
    /// The same in Postgres.
    Postgres,
}

/// The same in lanes. What is behind a failure is released.
const IN_ORDER: &[Step] = &[Step::Begun, Step::CommitSent, Step::Committed];

/// Unstarted claims are released in a drain only.
const DEDUPLICATED: &[Step] = &[Step::ReleaseSent, Step::Begun, Step::CommitSent, Step::Committed];

/// A statement's completion is in its commit.
const TRANSACTIONAL: &[Step] = &[Step::ReleaseSent, Step::CompleteSent, Step::CompleteApplied];

/// A statement is shorter than a third of its lease, unless the machine is busy.
const PERHAPS: Step = Step::RenewSent;

/// The steps that are different if statements share a transaction.
const SHARED: [Step; 5] =
    [Step::Begun, Step::HandlerStart, Step::EffectDone, Step::CommitSent, Step::Committed];

/// Statements of which up to four share a transaction.
const POSTGRES_SHARED: Kinds =
    Kinds { name: "postgres-shared", setup: shared_sql, never: TRANSACTIONAL, effects: Effects::Postgres };

fn shared_sql() -> Setup {
    sql().set("handler.sql.batch", 4)
}

fn in_order() -> Setup {
    worker().set("pipeline.ordering", "key").set("pipeline.order_by", "json:/lane")
}

const KINDS: [Kinds; 5] = [
    Kinds { name: "worker", setup: worker, never: DEDUPLICATED, effects: Effects::Ledger },
    Kinds { name: "in-order", setup: in_order, never: IN_ORDER, effects: Effects::Ledger },
    Kinds { name: "exec", setup: exec, never: DEDUPLICATED, effects: Effects::Ledger },
    Kinds { name: "sqlite", setup: sql, never: TRANSACTIONAL, effects: Effects::Sqlite },
    Kinds { name: "postgres", setup: sql, never: TRANSACTIONAL, effects: Effects::Postgres },
];

/// A passing in the middle of the run, where one is certain: some steps are passed once for a whole batch.
fn middle(step: Step) -> Option<u32> {
    match step {
        Step::Received | Step::RenewSent | Step::ReleaseSent => None,
        Step::HandlerStart | Step::EffectDone | Step::Begun | Step::CommitSent | Step::Committed => Some(7),
        _ => Some(2),
    }
}

#[test]
fn death_at_any_step_loses_nothing_and_doubles_only_what_was_in_flight() {
    let mut cases = Vec::new();
    for kind in &KINDS {
        for step in Step::ALL {
            cases.push((kind, step, 1));
            cases.extend(middle(step).filter(|_| !kind.never.contains(&step)).map(|nth| (kind, step, nth)));
        }
    }
    for step in SHARED {
        // The first passing, and one in the middle of a transaction or, where it is passed once in each, of the second.
        let is_each = matches!(step, Step::HandlerStart | Step::EffectDone);
        cases.extend([1, if is_each { 7 } else { 2 }].map(|nth| (&POSTGRES_SHARED, step, nth)));
    }
    cases.reverse();
    let cases = Mutex::new(cases);
    std::thread::scope(|threads| {
        for _ in 0..AT_A_TIME {
            threads.spawn(|| {
                while let Some((kind, step, nth)) = next(&cases) {
                    die_at(kind, step, nth);
                }
            });
        }
    });
}

fn next<T>(cases: &Mutex<Vec<T>>) -> Option<T> {
    cases.lock().ok()?.pop()
}

/// Two lanes: some that go well, copies of them, one that fails once, two that fail for good, one longer than a third of the
/// lease.
fn lines() -> Vec<String> {
    let mut lines: Vec<_> = (0..12)
        .map(|number| order(&format!("well-{number}"), &json!({"steps": 10, "lane": number % 2})))
        .collect();
    lines.extend_from_slice(&lines.clone()[..4]);
    lines.insert(3, order("once", &json!({"do": "fail", "times": 1, "steps": 10, "lane": 0})));
    lines.insert(5, order("dead-1", &json!({"do": "permanent", "steps": -1, "lane": 1})));
    lines.insert(9, order("dead-2", &json!({"do": "permanent", "steps": -1, "lane": 0})));
    lines.insert(10, order("slow", &json!({"ms": 1000, "steps": 10, "lane": 1})));
    lines
}

/// What the lines are for, in their order.
fn produced() -> Vec<Produced> {
    let lines = lines().into_iter();
    lines
        .map(|line| {
            let order: Value = serde_json::from_str(&line).expect("an order is JSON");
            let key = order["id"].as_str().expect("an id").to_owned();
            Produced { key, order_key: Some(order["lane"].to_string()), confirmed: true }
        })
        .collect()
}

fn ids() -> Vec<String> {
    let well = (0..12).map(|number| format!("well-{number}"));
    well.chain(["once", "dead-1", "dead-2", "slow"].map(String::from)).collect()
}

fn die_at(kind: &Kinds, step: Step, nth: u32) {
    let case = format!("{} {}:{nth}", kind.name, step.name());
    let table = (kind.effects == Effects::Postgres).then(|| {
        let name = format!("crash_{}_{}_{nth}", kind.name, step.name()).replace('-', "_");
        Table::create(Postgres::shared(), &name)
    });
    let setup = (kind.setup)().set("store.sqlite.lease", LEASE);
    let scene = scene(&table.as_ref().map_or(setup.clone(), |table| table.handler(setup)), &lines());
    match (&table, kind.effects) {
        (Some(table), _) => refuse_the_dead(table),
        (None, Effects::Sqlite) => prepare_table(&scene),
        _ => {}
    }
    let died = scene.run_with_crash_point(&format!("{}:{nth}:abort", step.name())).wait_within(PATIENCE);
    let aborted = died.signal() == Some(SIGABRT);
    if kind.never.contains(&step) {
        assert_eq!(died.code(), Some(3), "{case}: listed as never passed: {died:#?}");
    } else if kind.effects == Effects::Ledger || step != PERHAPS {
        assert!(aborted, "{case}: the step was not passed: {died:#?}");
    }
    let is_told = aborted && kind.effects == Effects::Ledger;
    let pending = if is_told { in_flight(&scene) } else { BTreeSet::new() };

    let ended = scene.run_to_end();
    assert!(matches!(ended.code(), Some(0 | 3)), "{case}: {ended:#?}");
    let again = scene.run_to_end();
    assert_eq!((again.code(), again.summary("received")), (Some(0), 0), "{case}: {again:#?}");
    let dead: BTreeSet<_> = scene.letters().iter().map(letter_id).collect();
    assert_eq!(dead, BTreeSet::from(["dead-1".to_owned(), "dead-2".to_owned()]), "{case}");
    if let Some(table) = &table {
        table.assert_exact(&living(), &case);
    } else if kind.effects == Effects::Sqlite {
        exactly_one_row_each(&scene, &case);
    } else {
        let pending = ids_of(&scene, &pending);
        let ledger = ledger_of(&scene, produced());
        ledger.verify(&pending);
        if kind.name == "in-order" {
            assert_eq!(ledger.out_of_order(), [], "{case}");
        }
        // What is recorded, a failure for good among it, is not run again, whatever is left to do about it.
        for (id, runs) in scene.count(Kind::Start) {
            let most = 1 + usize::from(id == "once") + usize::from(pending.contains(&id));
            assert!(runs <= most, "{case}: {runs} runs of {id}");
        }
    }
}

/// A trigger refuses the dead ones for good, and `once` by its attempt.
fn prepare_table(scene: &Scene) {
    let mut database = scene.database();
    database.execute(EFFECTS);
    database.execute(
        "CREATE TRIGGER dead BEFORE INSERT ON effects WHEN NEW.id LIKE 'dead-%' \
         BEGIN SELECT RAISE(ABORT, 'told to fail for good'); END",
    );
}

/// The same in Postgres.
fn refuse_the_dead(table: &Table<'_>) {
    table.sql(
        "CREATE FUNCTION @.refuse() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RAISE EXCEPTION ''told to fail for good''; END'; \
         CREATE TRIGGER dead BEFORE INSERT ON @.effects FOR EACH ROW WHEN (NEW.id LIKE 'dead-%') \
         EXECUTE FUNCTION @.refuse()",
    );
}

/// The ids that have an effect.
fn living() -> Vec<String> {
    ids().into_iter().filter(|id| !id.starts_with("dead")).collect()
}

fn exactly_one_row_each(scene: &Scene, case: &str) {
    let mut rows = scene.database().texts("SELECT id FROM effects");
    rows.sort_unstable();
    let mut expected = living();
    expected.sort_unstable();
    assert_eq!(rows, expected, "{case}");
}

#[test]
fn a_run_without_a_plan_crashes_nowhere() {
    let scene = scene(&worker(), &lines());
    let ended = scene.run_to_end();
    assert_eq!(ended.code(), Some(3), "{ended:#?}");
    ledger_of(&scene, produced()).verify(&BTreeSet::new());
    assert_eq!(scene.letters().len(), 2);
}
