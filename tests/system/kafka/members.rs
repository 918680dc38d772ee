//! Members that join, leave, are paused beyond their session and killed, under load: the program, with keys in Redis.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use onceward_test_support::chance::Chance;
use onceward_test_support::effects::Kind;
use onceward_test_support::process::until;

use super::disturbed::{Members, PARTITIONS, counted, orders, size};
use super::setup;
use super::topic::Topic;
use crate::pair::{LONG, Waiting, pending, scene};
use crate::stage::{ids_of, ledger_of};

/// Handlers that a program runs side by side.
const WORKERS: usize = 4;
/// The default of `pipeline.lane_batch`.
const LANE_BATCH: usize = 256;

#[test]
#[allow(clippy::print_stdout)]
fn members_that_join_leave_pause_and_die_under_load_lose_nothing_and_keep_the_order_of_each_key() {
    let topic = Topic::create("members", PARTITIONS);
    let (messages, disturbances) = size((10_000, 6));
    let (lines, produced) = orders(messages, &mut Chance::new());
    let distinct = counted(produced.iter().map(|own| &own.key)).len();
    let scene = scene(&setup(&topic));
    let (done, began) = (AtomicBool::new(false), Instant::now());
    let effects = || scene.count(Kind::Effect).len();
    let excused = std::thread::scope(|threads| {
        let watching = threads.spawn(|| topic.watch(&done));
        let in_flight = RefCell::new(BTreeSet::new());
        let (start, interrupted) = (|_| scene.run(), || in_flight.borrow_mut().extend(pending(&scene)));
        let mut members = Members::two(&start, interrupted);
        members.under_load(&topic, &lines, disturbances, effects);
        until("all effects", LONG, || effects() == distinct);
        until("no lag", LONG, || topic.is_empty());
        members.stop();
        done.store(true, Ordering::Relaxed);
        assert!(watching.join().expect("offsets that never go back") > 20, "it hardly looked");
        ids_of(&scene, &in_flight.borrow())
    });
    let took = began.elapsed();
    let ledger = ledger_of(&scene, produced);
    // Each handler of up to four members may have a whole sequence: who dies or is paused can release nothing. A rebalance
    // releases what has not started, and doubles nothing.
    let claimed = disturbances * 4 * WORKERS * LANE_BATCH;
    assert!(excused.len() <= claimed, "{} keys were claimed", excused.len());
    ledger.verify(&excused);
    assert_eq!(ledger.out_of_order(), []);
    let (claimed, twice) = (excused.len(), ledger.doubled().len());
    // Figures for runs with --nocapture.
    println!(
        "{messages} messages, {disturbances} disturbances, {took:?}: {claimed} claimed, {twice} with two effects"
    );
}
