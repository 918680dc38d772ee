//! More is claimed than has a slot, as far as handlers would wait for claims.

use super::*;
use crate::pipeline::config::Ordering;

const CONCURRENCY: usize = 4;
const LATENCY: Duration = Duration::from_millis(20);

fn few(config: &mut PipelineConfig) {
    (config.concurrency, config.max_batch, config.claims_ahead) = (CONCURRENCY, 256, 512);
}

/// The most runs that were going on at one time.
fn side_by_side(world: &World) -> usize {
    let mut changes: Vec<_> = Vec::new();
    for run in world.runs() {
        changes.push((run.started, 1));
        changes.extend(run.ended.iter().map(|(at, _)| (*at, -1)));
    }
    changes.sort_unstable();
    let mut running = 0;
    let after = changes.into_iter().map(|(_, change)| {
        running += change;
        running
    });
    usize::try_from(after.max().unwrap_or_default()).unwrap()
}

/// `fast` messages whose handlers take 1 ms, and behind them `slow` ones that take 9 s, over a store that takes 20 ms.
fn started(world: &World, fast: usize, slow: usize, change: impl FnOnce(&mut PipelineConfig)) -> Worker {
    let ids = (0..fast).map(|number| format!("fast-{number}"));
    let ids: Vec<String> = ids.chain((0..slow).map(|number| format!("slow-{number}"))).collect();
    ids.iter().for_each(|id| world.broker.publish_to(0, message(id)));
    let worker = world.worker().config(few).config(change);
    worker.store.set(Faults { latency: LATENCY, ..Faults::NONE });
    worker.start(|message| async move {
        let takes = if id_of(&message).starts_with("fast") { MS } else { 9 * SECOND };
        tokio::time::sleep(takes).await;
        Ok(())
    })
}

/// How many of the first `slow` messages are claimed.
async fn claimed(world: &World, slow: usize) -> usize {
    let mut claimed = 0;
    for number in 0..slow {
        let state = world.state(&format!("slow-{number}")).await;
        claimed += usize::from(matches!(state, KeyState::Pending));
    }
    claimed
}

#[tokio::test(start_paused = true)]
async fn fast_handlers_do_not_wait_for_claims_and_no_more_run_than_may() {
    let mut took = Vec::new();
    for claims_ahead in [0, 512] {
        let world = World::with(Habits { batch: 1_000, ..Habits::default() });
        let began = Instant::now();
        let worker = started(&world, 2_000, 0, |config| config.claims_ahead = claims_ahead);
        world.empty().await;
        took.push(began.elapsed());
        assert_eq!(side_by_side(&world), CONCURRENCY);
        assert_eq!(worker.end().await.handled(), 2_000);
    }
    // 500 ms of handlers in each slot, which wait for 500 claims of four messages each, or for a few of many.
    assert!(took[1] * 3 < took[0], "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn nearly_nothing_is_claimed_ahead_of_slow_handlers() {
    let world = World::with(Habits { batch: 1_000, ..Habits::default() });
    let worker = started(&world, 0, 40, |_| {});
    for _ in 0..8 {
        tokio::time::sleep(5 * SECOND).await;
        let claimed = claimed(&world, 40).await;
        assert!((CONCURRENCY..=CONCURRENCY + 2).contains(&claimed), "{claimed} are claimed");
    }
    world.empty().await;
    assert_eq!(worker.end().await.handled(), 40);
}

/// Waits until slow messages are claimed that have no slot.
async fn claimed_ahead(world: &World) {
    eventually("all slots are taken by slow ones", || {
        world.runs().iter().filter(|run| run.id.starts_with("slow")).count() == CONCURRENCY
    })
    .await;
    tokio::time::sleep(2 * SECOND).await;
    let claimed = claimed(world, 200).await;
    assert!(claimed > 4 * CONCURRENCY, "{claimed} are claimed: the case does not happen");
}

/// Only what runs has its claim, and no other message has used an attempt.
async fn others_are_released(world: &World) {
    for number in 0..200 {
        let id = format!("slow-{number}");
        if world.runs_of(&id).is_empty() {
            let record = world.record(&id).await;
            let unused = record.is_none_or(|record| (record.attempts, record.lost) == (0, 0));
            assert!(unused && matches!(world.state(&id).await, KeyState::Absent), "{id}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_slot_at_a_shutdown_is_released_and_returned_at_once() {
    let world = World::with(Habits { batch: 1_000, ..Habits::default() });
    let worker = started(&world, 1_000, 200, |config| config.drain_timeout = 60 * SECOND);
    claimed_ahead(&world).await;
    let began = Instant::now();
    let (summary, ()) = tokio::join!(worker.end(), async {
        tokio::time::sleep(SECOND).await;
        others_are_released(&world).await;
    });
    assert!(began.elapsed() < 10 * SECOND, "{:?}: only what ran was waited for", began.elapsed());
    assert_eq!(summary.handled(), 1_000 + CONCURRENCY as u64);
    assert_eq!(summary.given_back(), 200 - CONCURRENCY as u64);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_slot_is_released_when_its_partition_leaves() {
    let world = World::with(Habits { batch: 1_000, partitions: 2, ..Habits::default() });
    let worker = started(&world, 1_000, 200, |_| {});
    claimed_ahead(&world).await;
    world.broker.leave(1, 0);
    tokio::time::sleep(SECOND).await;
    others_are_released(&world).await;
    assert_eq!(worker.end().await.handled(), 1_000 + CONCURRENCY as u64);
}

#[tokio::test(start_paused = true)]
async fn claims_that_wait_for_their_slot_are_renewed_and_nothing_runs_twice() {
    let world = World::with(Habits { batch: 1_000, ..Habits::default() });
    let worker = started(&world, 1_000, 50, |config| config.lease = SECOND);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), world.runs().len()), (1_050, 1_050));
    let lost = [Counter::Fenced, Counter::Takeovers, Counter::LeasesLost];
    assert_eq!(lost.map(|counter| summary.counters().get(counter)), [0; 3]);
}

#[tokio::test(start_paused = true)]
async fn lanes_that_wait_for_a_slot_are_released_when_their_partition_leaves() {
    let world = World::with(Habits { batch: 1_000, partitions: 2, ..Habits::default() });
    for number in 0..1_000 {
        world.broker.publish_to(0, message(&format!("fast-{number}")).order_key(format!("fast-{number}")));
    }
    for number in 0..200 {
        let lane = format!("lane-{}", number / 2);
        world.broker.publish_to(0, message(&format!("slow-{number}")).order_key(lane));
    }
    let worker = started(&world, 0, 0, |config| config.ordering = Ordering::BrokerKey);
    claimed_ahead(&world).await;
    world.broker.leave(1, 0);
    tokio::time::sleep(SECOND).await;
    for lane in 0..100 {
        let ids = [0, 1].map(|of_lane| format!("slow-{}", 2 * lane + of_lane));
        // What is behind a run that goes on is released when that has ended.
        if ids.iter().all(|id| world.runs_of(id).is_empty()) {
            for id in ids {
                assert!(matches!(world.state(&id).await, KeyState::Absent), "{id}");
            }
        }
    }
    assert_eq!(worker.end().await.handled(), 1_000 + CONCURRENCY as u64);
}

#[tokio::test(start_paused = true)]
async fn rule_5_what_waits_for_its_slot_does_not_start_while_the_store_is_down() {
    let world = World::with(Habits { batch: 1_000, ..Habits::default() });
    let worker = started(&world, 1_000, 100, |config| config.lease = 600 * SECOND);
    claimed_ahead(&world).await;
    worker.store.go_down();
    tokio::time::sleep(120 * SECOND).await;
    assert_eq!(world.runs().len(), 1_000 + CONCURRENCY, "no handler has started");
    worker.store.come_up();
    world.empty().await;
    assert_eq!(worker.end().await.handled(), 1_100);
}
