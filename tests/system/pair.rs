//! Two programs on one source, killed in turn: what every broker's stories share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::{self, Orders};
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use crate::order;
use crate::stage::{ONCEWARD, each, ids_of, ledger, ledger_of, worker};

/// A whole run with its kills, on a machine that has other work too.
pub(crate) const LONG: Duration = Duration::from_secs(240);
/// Of the stores: on a machine with other work none lapses while its holder lives, nor before [`pending`] has seen what a kill
/// left behind.
pub(crate) const LEASE: &str = "5s";
/// Of the stores' calls.
pub(crate) const TIMEOUT: &str = "2s";
const DRAIN: Duration = Duration::from_secs(10);

/// Where messages wait: a queue, or a topic with its group.
pub(crate) trait Waiting {
    /// Its name, for figures.
    fn name(&self) -> &str;

    /// Puts one message a line into it; all are confirmed.
    fn publish(&self, lines: &[String]);

    /// True if nothing waits and nothing is unacknowledged.
    fn is_empty(&self) -> bool;
}

/// Workers with a broker's source, which is still to be set, and without a place for dead letters.
pub(crate) fn without_source() -> Setup {
    worker()
        .without("source.file")
        .without("dead_letter")
        .set("store.sqlite.lease", LEASE)
        .set("store.sqlite.timeout", TIMEOUT)
        .set("policy.on_exhausted", "park")
        .set("policy.on_missing_key", "reject")
        .set("policy.on_mismatch", "ack")
        .set("pipeline.drain_timeout", "10s")
}

/// With the keys in Redis.
pub(crate) fn with_redis(setup: Setup, redis: &Redis) -> Setup {
    setup
        .without("store.sqlite")
        .set("store.redis.url", redis.url())
        .set("store.redis.lease", LEASE)
        .set("store.redis.timeout", TIMEOUT)
}

/// A folder with a configuration alone.
pub(crate) fn scene(setup: &Setup) -> Scene {
    // The SQS-compatible server takes any credentials, but the SDK wants some.
    let scene = Scene::new(ONCEWARD).env("AWS_ACCESS_KEY_ID", "any").env("AWS_SECRET_ACCESS_KEY", "any");
    scene.configure(setup);
    scene
}

/// The keys that are claimed and not completed: for them it is unknown whether the effect happened.
pub(crate) fn pending(scene: &Scene) -> BTreeSet<String> {
    let told =
        scene.execute(&["keys", "list", "onceward.toml", "--state", "pending", "--limit", "1000", "--json"]);
    assert_eq!(told.code(), Some(0), "{told:#?}");
    let keys = told.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON lines"));
    keys.map(|key| key["hash"].as_str().expect("the hash of a key").to_owned()).collect()
}

/// Both end in time on SIGTERM, and leave nothing behind.
pub(crate) fn stop(running: Vec<Running>) {
    running.iter().for_each(Running::terminate);
    for running in running {
        let ended = running.wait_within(DRAIN + Duration::from_secs(5));
        assert_eq!(ended.code(), Some(0), "{ended:#?}");
    }
}

/// Two programs, killed in turn at random moments, until nothing waits; the keys whose effects may be doubled by that.
pub(crate) fn under_kills(
    queue: &impl Waiting,
    scene: &Scene,
    distinct: usize,
    kills: usize,
) -> BTreeSet<String> {
    let mut excused = BTreeSet::new();
    let done = || scene.count(Kind::Effect).len();
    let running = killed_in_turn(scene, distinct, kills, done, || excused.extend(pending(scene)));
    // What a kill left behind is redelivered when its lease is over.
    until("an empty queue", LONG, || queue.is_empty());
    // A process that was started just before a kill writes its notes just after it.
    let excused = ids_of(scene, &excused);
    stop(running);
    excused
}

/// Two programs, killed in turn at random moments, until `distinct` effects are `done`; those that run then. `killed` is
/// called after each kill, before the next program starts.
pub(crate) fn killed_in_turn(
    scene: &Scene,
    distinct: usize,
    kills: usize,
    done: impl Fn() -> usize,
    mut killed: impl FnMut(),
) -> Vec<Running> {
    let mut chance = Chance::new();
    let mut running = vec![scene.run(), scene.run()];
    for kill in 0..kills {
        let least = distinct * (kill + 1) / (kills + 2);
        until("effects", LONG, || done() >= least);
        std::thread::sleep(chance.millis(0..30));
        assert_eq!(running.remove(0).kill().signal(), Some(9));
        killed();
        running.push(scene.run());
    }
    until("all effects", LONG, || done() >= distinct);
    running
}

/// In each of `lanes` lanes, `long` messages long, first effects come in their order, whatever fails and is killed.
pub(crate) fn the_order_of_each_key_is_kept(queue: &impl Waiting, setup: &Setup, lanes: usize, long: usize) {
    let (lines, produced) = order::lines(lanes, long);
    queue.publish(&lines);
    let scene = scene(setup);
    under_kills(queue, &scene, produced.len(), kills(4));
    let ledger = ledger_of(&scene, produced);
    assert_eq!((ledger.lost(), ledger.unasked()), (vec![], vec![]));
    assert_eq!(ledger.out_of_order(), []);
}

/// Of every fifty one fails in its first run: 2 %.
pub(crate) fn orders(lines: usize) -> Orders {
    let mut orders = Orders::with_copies(lines, lines * 3 / 10, &json!({"ms": 1}), &mut Chance::new());
    let failing: BTreeSet<_> = orders.ids.iter().step_by(50).cloned().collect();
    for line in &mut orders.lines {
        let parsed: Value = serde_json::from_str(line).expect("an order is JSON");
        let id = parsed["id"].as_str().expect("an id");
        if failing.contains(id) {
            *line = orders::order(id, &json!({"ms": 1, "do": "fail", "times": 1}));
        }
    }
    orders
}

/// With copies, failures and ten kills, and once more without kills for the time it takes.
#[allow(clippy::print_stdout)]
pub(crate) fn nothing_is_lost_and_only_what_was_in_flight_is_doubled(
    queue: &impl Waiting,
    setup: &Setup,
    messages: usize,
) {
    let kills = kills(10);
    let orders = orders(messages);
    queue.publish(&orders.lines);
    let scene = scene(setup);
    let began = Instant::now();
    let excused = under_kills(queue, &scene, orders.ids.len(), kills);
    let took = began.elapsed();
    let ledger = ledger(&scene, &orders.ids);
    assert!(excused.len() <= kills * 16, "{} keys were in flight at {kills} kills", excused.len());
    ledger.verify(&excused);
    let undisturbed = undisturbed(queue, setup, messages);
    // Figures for runs with --nocapture; nothing is asserted on a machine with other work.
    println!(
        "{}: {took:?} with {kills} kills, {undisturbed:?} undisturbed; a lease is {LEASE}",
        queue.name()
    );
}

/// How long as many messages take without kills, under other keys.
fn undisturbed(queue: &impl Waiting, setup: &Setup, messages: usize) -> Duration {
    let orders = orders(messages);
    queue.publish(&orders.lines);
    // The brokers' stories share a store.
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let scope = format!("undisturbed-{}", RUNS.fetch_add(1, Ordering::Relaxed));
    let scene = scene(&setup.clone().set("scope", scope));
    let began = Instant::now();
    let running = vec![scene.run(), scene.run()];
    until("all effects", LONG, || scene.count(Kind::Effect).len() == orders.ids.len());
    stop(running);
    let took = began.elapsed();
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
    took
}
