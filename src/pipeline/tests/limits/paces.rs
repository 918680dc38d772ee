//! Checks the two limits of how fast handlers start: a rate, and a concurrency that adapts.

use std::sync::atomic::{AtomicUsize, Ordering as Atomically};

use super::super::sequences::{in_lane, in_order};
use super::*;
use crate::telemetry::IntakePause;

const RATE: f64 = 50.0;

fn limited(config: &mut PipelineConfig) {
    config.rate_limit = Some(RATE);
}

/// Asserts that in each second no more runs started than the rate allows, with the burst of a tenth of a second.
#[track_caller]
fn assert_rate(world: &World, runs: usize) {
    let mut starts: Vec<_> = world.runs().into_iter().map(|run| run.started).collect();
    starts.sort();
    assert_eq!(starts.len(), runs);
    for pair in starts.windows(56) {
        assert!(pair[55] - pair[0] >= SECOND, "56 runs within {:?}", pair[55] - pair[0]);
    }
    let all = starts[runs - 1] - starts[0];
    let least = SECOND.mul_f64((runs - 5) as f64 / RATE);
    assert!(all >= least - 20 * MS && all <= least + 200 * MS, "{runs} runs in {all:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_runs_start_per_second_than_the_rate_allows() {
    let world = World::with(Habits::default());
    (0..300).for_each(|number| world.publish(&format!("{number}")));
    let worker = world.worker().config(limited).start_ok();
    world.empty().await;
    assert_rate(&world, 300);
    assert_eq!(worker.end().await.handled(), 300);
}

#[tokio::test(start_paused = true)]
async fn the_rate_holds_for_sequences_and_for_retries() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    (1..=100)
        .for_each(|number| world.broker.publish(in_lane(if number % 2 == 0 { "A" } else { "B" }, number)));
    let worker = world.worker().config(in_order).config(limited).start(|message| async move {
        match message.attempt() {
            1 if id_of(&message).ends_with('0') => Err(HandlerError::retry("not yet")),
            _ => Ok(()),
        }
    });
    world.empty().await;
    assert_rate(&world, 110);
    assert_eq!(worker.end().await.handled(), 100);
}

#[tokio::test(start_paused = true)]
async fn duplicates_and_claims_that_do_not_run_use_nothing_of_the_rate() {
    let world = World::with(Habits::default());
    (0..100).for_each(|number| world.publish(&format!("{number}")));
    let first = world.worker().start_ok();
    world.empty().await;
    let _ = first.end().await;
    (0..1000).for_each(|number| world.publish(&format!("{}", number % 100)));
    world.publish("new");
    let began = Instant::now();
    let worker = world.worker().config(|config| config.rate_limit = Some(2.0)).start_ok();
    world.empty().await;
    assert!(began.elapsed() < 2 * SECOND, "{:?} for duplicates", began.elapsed());
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (1, 1000));
}

#[tokio::test(start_paused = true)]
async fn intake_that_pauses_because_of_the_rate_says_so() {
    let world = World::with(Habits::default());
    (0..200).for_each(|number| world.publish(&format!("{number}")));
    let worker = world
        .worker()
        .config(limited)
        .config(|config| (config.concurrency, config.max_in_flight) = (4, 16))
        .start_ok();
    let counters = Arc::clone(&worker.counters);
    eventually("it pauses", || counters.paused().contains(IntakePause::Rate)).await;
    world.empty().await;
    assert!(!counters.paused().contains(IntakePause::Rate));
    assert_eq!(worker.end().await.handled(), 200);
}

/// A service that does `at_once` runs in 20 ms each, and makes others wait.
async fn served(busy: Arc<AtomicUsize>, most: Arc<AtomicUsize>, at_once: usize) -> Handled {
    let now = busy.fetch_add(1, Atomically::Relaxed) + 1;
    most.fetch_max(now, Atomically::Relaxed);
    tokio::time::sleep((20 * MS).mul_f64((now as f64 / at_once as f64).max(1.0))).await;
    busy.fetch_sub(1, Atomically::Relaxed);
    Ok(())
}

/// The most runs at once after a while, and how many runs ended in a while after that.
async fn adapted(adaptive: bool, at_once: usize, a_while: Duration) -> (usize, u64) {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    (0..20_000).for_each(|number| world.publish(&format!("{number}")));
    let (busy, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let worker = world
        .worker()
        .config(move |config| (config.concurrency, config.adaptive_concurrency) = (200, adaptive))
        .start(move |_| served(Arc::clone(&busy), Arc::clone(&most), at_once));
    tokio::time::sleep(a_while).await;
    let before = worker.counters.get(Counter::Handled);
    seen.store(0, Atomically::Relaxed);
    tokio::time::sleep(a_while).await;
    let handled = worker.counters.get(Counter::Handled) - before;
    worker.die();
    (seen.load(Atomically::Relaxed), handled)
}

#[tokio::test(start_paused = true)]
async fn concurrency_that_adapts_stays_near_what_the_other_side_takes_at_once() {
    let (most, handled) = adapted(true, 20, 5 * SECOND).await;
    assert!((16..=36).contains(&most), "{most} at once where 20 are served");
    assert!(handled >= 4_250, "{handled} runs of 5,000 that were possible");
    let (most, _) = adapted(false, 20, SECOND).await;
    assert_eq!(most, 200, "without it all run at once");
    let (most, handled) = adapted(true, 200, 500 * MS).await;
    assert_eq!(most, 200, "nothing becomes slower, so all run at once");
    assert!(handled >= 4_750, "{handled} runs of 5,000 that were possible");
}

#[tokio::test(start_paused = true)]
async fn concurrency_that_adapts_falls_where_the_handler_is_unavailable_and_rises_again() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    (0..20_000).for_each(|number| world.publish(&format!("{number}")));
    let began = Instant::now();
    let worker = world
        .worker()
        .config(|config| (config.concurrency, config.adaptive_concurrency) = (64, true))
        .start(move |_| async move {
            tokio::time::sleep(20 * MS).await;
            match began.elapsed() {
                at if at > 3 * SECOND && at < 4 * SECOND => {
                    Err(HandlerError::unavailable("too many requests"))
                }
                _ => Ok(()),
            }
        });
    let concurrency = || worker.counters.limits().map_or(0, |limits| limits.concurrency);
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(concurrency(), 64);
    tokio::time::sleep(SECOND).await;
    assert!(concurrency() <= 32, "{} while it is unavailable", concurrency());
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(concurrency(), 64);
    worker.die();
}
