//! Checks that the messages of a lane run in order although they are claimed, completed and settled in batches.

use super::*;
use crate::pipeline::config::{OnMissingKey, Ordering};
use crate::testing::{Fault, Operation};

const BATCH: usize = 32;

pub(super) fn in_lane(lane: &str, number: u32) -> MessageBuilder {
    message(&format!("{lane}#{number}")).order_key(lane.to_owned())
}

fn world_of(lane: &str, numbers: std::ops::RangeInclusive<u32>) -> World {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    numbers.for_each(|number| world.broker.publish(in_lane(lane, number)));
    world
}

pub(super) fn in_order(config: &mut PipelineConfig) {
    (config.ordering, config.lane_batch) = (Ordering::BrokerKey, BATCH);
}

pub(super) async fn for_10_ms(_: Message) -> Handled {
    tokio::time::sleep(10 * MS).await;
    Ok(())
}

/// Asserts that no run of the world began before the one before it had ended.
#[track_caller]
pub(super) fn assert_one_by_one(world: &World) {
    let runs = world.runs();
    let overlap =
        runs.windows(2).find(|pair| pair[0].ended.as_ref().is_none_or(|(at, _)| *at > pair[1].started));
    assert!(overlap.is_none(), "two runs of a lane overlap: {overlap:?}");
}

pub(super) fn numbered(lane: &str, numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(|number| format!("{lane}#{number}")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_lane_is_claimed_and_completed_in_batches_and_runs_one_by_one() {
    let world = world_of("A", 1..=64);
    let worker = world.worker().config(in_order);
    worker.store.set(Faults { latency: 20 * MS, ..Faults::NONE });
    let began = Instant::now();
    let worker = worker.start_ok();
    world.empty().await;
    assert!(began.elapsed() < 400 * MS, "{:?} for 64 messages", began.elapsed());
    let claims = worker.store.calls(Operation::Claim);
    assert!(claims <= 4, "{claims} claim calls for two batches");
    assert_eq!(world.ids(), numbered("A", 1..=64));
    assert_one_by_one(&world);
    assert_eq!(worker.end().await.handled(), 64);
}

#[tokio::test(start_paused = true)]
async fn rule_10_the_next_starts_when_the_completion_is_sent_and_no_settlement_passes_an_earlier_one() {
    let world = world_of("A", 1..=3);
    let worker = world.worker().config(in_order);
    worker.store.next(Operation::Complete, Fault::ReplyLate(700 * MS));
    let worker = worker.start(for_10_ms);
    tokio::time::sleep(300 * MS).await;
    assert_eq!(world.ids(), numbered("A", 1..=3));
    assert_one_by_one(&world);
    assert_eq!(world.state("A#3").await, KeyState::Completed);
    assert_eq!(world.broker.acked(), 0, "the first is not known to be completed");
    world.empty().await;
    assert_eq!(worker.end().await.handled(), 3);
}

#[tokio::test(start_paused = true)]
async fn rule_10_a_failure_stops_the_sequence_and_frees_the_claims_behind_it() {
    let world = world_of("A", 1..=5);
    let worker = world.worker().config(in_order).start(|message| async move {
        tokio::time::sleep(10 * MS).await;
        match id_of(&message) == "A#2" && message.attempt() < 3 {
            true => Err(HandlerError::retry_after(3 * SECOND, "not yet")),
            false => Ok(()),
        }
    });
    tokio::time::sleep(SECOND).await;
    assert_eq!((world.ids(), world.broker.acked()), (numbered("A", 1..=2), 1));
    for id in ["A#3", "A#5"] {
        let record = world.record(id).await.unwrap();
        assert_eq!((record.state, record.attempts, record.lost), (KeyState::Absent, 0, 0), "{id}");
    }
    world.empty().await;
    assert_eq!(world.ids(), numbered("A", [1, 2, 2, 2, 3, 4, 5]));
    assert_one_by_one(&world);
    assert!(world.runs().iter().all(|run| run.id == "A#2" || run.attempt == 1), "no attempt was used");
    assert_eq!(worker.end().await.handled(), 5);
}

#[tokio::test(start_paused = true)]
async fn rule_10_a_dead_letter_in_a_sequence_frees_its_lane() {
    let world = world_of("A", 1..=4);
    let worker = world.worker().config(in_order).start(|message| async move {
        if id_of(&message) == "A#2" { Err(HandlerError::permanent("never")) } else { Ok(()) }
    });
    world.empty().await;
    assert_eq!(world.ids(), numbered("A", 1..=4));
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered(), summary.duplicates()), (3, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn rule_10_a_key_in_progress_elsewhere_stops_the_sequence() {
    let world = world_of("A", 1..=4);
    let _elsewhere = world.claim_elsewhere("A#2", 10 * SECOND).await;
    let worker = world.worker().config(in_order).start_ok();
    tokio::time::sleep(9 * SECOND).await;
    assert_eq!((world.ids(), world.broker.acked()), (numbered("A", [1]), 1));
    assert_eq!(world.state("A#3").await, KeyState::Absent);
    world.empty().await;
    assert_eq!(world.ids(), numbered("A", 1..=4));
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::Takeovers)), (4, 1));
}

/// Its claim is lost while it runs, and another holds the key when its completion arrives.
#[tokio::test(start_paused = true)]
async fn rule_10_a_refused_completion_stops_the_sequence_and_is_settled_before_what_ran_behind_it() {
    let world = Arc::new(world_of("A", 1..=6));
    let worker = world.worker().config(in_order);
    worker.store.next(Operation::Complete, Fault::Late(5 * MS));
    let in_handler = Arc::clone(&world);
    let worker = worker.start(move |message| {
        let world = Arc::clone(&in_handler);
        async move {
            tokio::time::sleep(10 * MS).await;
            if id_of(&message) == "A#1" && world.runs().len() == 1 {
                world.store.forget(&world.scope, &[world.key("A#1")]).await;
                let _ = world.claim_elsewhere("A#1", 10 * SECOND).await;
            }
            Ok(())
        }
    });
    tokio::time::sleep(9 * SECOND).await;
    assert_eq!((world.ids(), world.broker.acked()), (numbered("A", 1..=2), 0));
    assert_eq!((world.state("A#2").await, world.state("A#3").await), (KeyState::Completed, KeyState::Absent));
    world.empty().await;
    // The first may run again; the second has, and is only settled.
    assert_eq!(world.ids(), numbered("A", [1, 2, 1, 3, 4, 5, 6]));
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (6, 0));
    assert_eq!(summary.counters().get(Counter::SuspectedDoubleEffects), 1);
}

#[tokio::test(start_paused = true)]
async fn rule_5_a_completion_that_is_not_answered_stops_the_sequence() {
    let world = world_of("A", 1..=20);
    let worker = world.worker().config(in_order).start(for_10_ms);
    eventually("the third runs", || world.runs().len() == 3).await;
    worker.store.go_down();
    tokio::time::sleep(5 * SECOND).await;
    // The third completes in vain while the fourth runs.
    assert_eq!(world.ids(), numbered("A", 1..=4));
    assert!(world.broker.acked() <= 2);
    worker.store.come_up();
    world.empty().await;
    assert_eq!(world.ids(), numbered("A", 1..=20));
    assert_one_by_one(&world);
    assert_eq!(worker.end().await.handled(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_mismatch_behind_a_failure_is_dead_lettered_with_its_key() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    world.publish("a");
    let first = world.worker().start_ok();
    world.empty().await;
    let _ = first.end().await;
    world.broker.publish(in_lane("A", 1));
    world.broker.publish(Message::builder("another").header("id", "a").order_key("A".to_owned()));
    let worker = world.worker().config(in_order).start(|message| async move {
        if message.attempt() == 1 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    });
    world.empty().await;
    assert_eq!(worker.end().await.dead_lettered(), 1);
    let letter = world.letters.sent().pop().unwrap();
    assert!(letter.headers.iter().any(|(name, _)| name == crate::dead_letter::HEADER_KEY), "{letter:?}");
}

#[tokio::test(start_paused = true)]
async fn runs_without_a_claim_are_counted_when_they_run() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    for number in 1..=3 {
        world.broker.publish(Message::builder(format!("{number}")).order_key("A".to_owned()));
    }
    let worker = world.worker().config(|config| {
        in_order(config);
        config.policies.on_missing_key = OnMissingKey::Process;
    });
    let worker = worker.start(|message| async move {
        let fails = message.payload() == "1" && message.attempt() == 1;
        if fails { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::Unprotected)), (3, 4));
}

#[tokio::test(start_paused = true)]
async fn behind_a_key_in_progress_elsewhere_nothing_is_claimed_again_until_it_is_free() {
    let world = world_of("A", 1..=4);
    let _elsewhere = world.claim_elsewhere("A#1", 10 * SECOND).await;
    let worker = world.worker().config(in_order).start_ok();
    tokio::time::sleep(9 * SECOND).await;
    assert!(worker.store.calls(Operation::Claim) > 1);
    assert_eq!(worker.store.calls(Operation::Release), 1, "after the first claim of all four");
    world.empty().await;
    assert_eq!(world.ids(), numbered("A", 1..=4));
    assert_eq!(worker.end().await.handled(), 4);
}

#[tokio::test(start_paused = true)]
async fn rule_12_a_drain_in_the_middle_of_a_sequence_releases_what_has_not_started() {
    let world = world_of("A", 1..=10);
    let worker = world.worker().config(in_order).start(|_| async {
        tokio::time::sleep(SECOND).await;
        Ok(())
    });
    tokio::time::sleep(2500 * MS).await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back(), summary.abandoned_runs()), (3, 7, 0));
    let stats = world.store.stats(&world.scope).await.unwrap();
    assert_eq!((stats.get(KeyState::Pending), stats.get(KeyState::Completed)), (0, 3));
    let second = world.worker().config(in_order).start_ok();
    let restarted = Instant::now();
    world.empty().await;
    assert!(restarted.elapsed() < LEASE / 2, "no wait for a lease: {:?}", restarted.elapsed());
    assert_eq!(world.ids(), numbered("A", 1..=10));
    assert_eq!(second.end().await.counters().get(Counter::Takeovers), 0);
}

#[tokio::test(start_paused = true)]
async fn of_a_leaving_partition_what_is_claimed_and_has_not_started_goes_to_its_new_owner_in_order() {
    let world = World::with(Habits { batch: 64, partitions: 2, ..Habits::default() });
    (1..=10).for_each(|number| world.broker.publish_to(0, message(&format!("A#{number}"))));
    let of_partitions = |config: &mut PipelineConfig| {
        (config.ordering, config.lane_batch) = (Ordering::Partition, BATCH);
    };
    let worker = world.worker().config(of_partitions).start(|_| async {
        tokio::time::sleep(40 * MS).await;
        Ok(())
    });
    tokio::time::sleep(100 * MS).await;
    assert_eq!(worker.store.calls(Operation::Claim), 1, "all are claimed");
    world.broker.leave(1, 0);
    let second = world.worker().config(of_partitions).start_ok();
    let left = Instant::now();
    world.empty().await;
    assert!(left.elapsed() < LEASE / 2, "no wait for a lease: {:?}", left.elapsed());
    assert_eq!(world.ids(), numbered("A", 1..=10));
    assert_one_by_one(&world);
    let (first, second) = (worker.end().await, second.end().await);
    assert_eq!((first.handled(), second.handled()), (3, 7));
    assert_eq!(second.counters().get(Counter::Takeovers), 0);
}

#[tokio::test(start_paused = true)]
async fn a_sequence_ends_in_time_and_the_next_ones_are_as_long_as_their_handlers_allow() {
    let world = world_of("A", 1..=40);
    let worker = world.worker().config(in_order).start(|message| async move {
        let slow = id_of(&message)[2..].parse::<u32>().is_ok_and(|number| number <= 10);
        tokio::time::sleep(if slow { 100 * MS } else { MS }).await;
        Ok(())
    });
    tokio::time::sleep(350 * MS).await;
    assert_eq!(world.ids(), numbered("A", 1..=4), "the third has ended after the time of a sequence");
    assert_eq!(world.state("A#5").await, KeyState::Pending);
    let record = world.record("A#6").await.unwrap();
    assert_eq!((record.state, record.attempts, record.lost), (KeyState::Absent, 0, 0), "two at a time");
    world.empty().await;
    assert_eq!(world.ids(), numbered("A", 1..=40));
    assert_one_by_one(&world);
    // Of 32, five of 2 (the last with fast ones), then twice as many each time.
    let claims = worker.store.calls(Operation::Claim);
    assert!((6..=10).contains(&claims), "{claims} claim calls");
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::Takeovers)), (40, 0));
}

#[tokio::test(start_paused = true)]
async fn rule_11_claims_that_wait_for_their_turn_are_renewed() {
    let world = world_of("A", 1..=10);
    let worker = world.worker().config(in_order).start(|message| async move {
        let is_first = id_of(&message) == "A#1";
        tokio::time::sleep(if is_first { 3 * LEASE } else { MS }).await;
        Ok(())
    });
    tokio::time::sleep(2 * LEASE).await;
    let left = world.record("A#10").await.and_then(|record| record.lease_left);
    assert!(left.is_some_and(|left| left > LEASE / 4), "{left:?} is left of its lease");
    world.empty().await;
    assert_eq!(world.ids(), numbered("A", 1..=10));
    let summary = worker.end().await;
    assert_eq!(summary.counters().get(Counter::LeasesLost), 0);
    assert_eq!(summary.handled(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_lapses_before_its_turn_is_claimed_anew_and_is_no_suspect() {
    let world = world_of("A", 1..=3);
    let worker = world.worker().config(in_order);
    let store = worker.store.clone();
    let worker = worker.start(move |message| {
        let store = store.clone();
        async move {
            if id_of(&message) == "A#1" {
                // Nothing is renewed for longer than a lease.
                store.go_down();
                tokio::time::sleep(2 * LEASE).await;
                store.come_up();
            }
            Ok(())
        }
    });
    world.empty().await;
    assert_eq!(world.ids(), numbered("A", 1..=3));
    assert!(world.runs().iter().all(|run| run.attempt == 1));
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::Takeovers)), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_death_at_any_moment_first_effects_stay_in_order() {
    for life in (1..60).map(|step| step * 7 * MS) {
        let world = world_of("A", 1..=40);
        let worker = world.worker().config(in_order);
        worker.store.set(Faults { latency: 11 * MS, reply_latency: 5 * MS, ..Faults::NONE });
        let worker = worker.start(for_10_ms);
        tokio::time::sleep(life).await;
        worker.die();
        let second = world.worker().config(in_order).start(for_10_ms);
        world.empty().await;
        let mut seen = std::collections::HashSet::new();
        let ended = world.runs().into_iter().filter(|run| run.ended.is_some());
        let first: Vec<_> = ended.map(|run| run.id).filter(|id| seen.insert(id.clone())).collect();
        assert_eq!(first, numbered("A", 1..=40), "after {life:?}");
        let _ = second.end().await;
    }
}

/// See `dispatch/suspects.rs`: after the first lapse all of a batch, then half of them, and so on.
#[tokio::test(start_paused = true)]
async fn of_a_lane_whose_first_message_kills_its_process_fewer_are_claimed_with_it_each_time() {
    let world = world_of("A", 1..=32);
    for death in 1..=5 {
        let worker = world.worker().config(in_order).start(|_| std::future::pending::<Handled>());
        eventually("the first runs", || world.runs_of("A#1").len() == death).await;
        worker.die();
        tokio::time::sleep(2 * LEASE).await;
    }
    let _last = world.worker().config(in_order).start(|_| std::future::pending::<Handled>());
    eventually("the first runs", || world.runs_of("A#1").len() == 6).await;
    let mut lost = Vec::new();
    for number in [1, 5, 9, 17, 32] {
        lost.push(world.record(&format!("A#{number}")).await.map_or(0, |record| record.lost));
    }
    assert_eq!(lost, [5, 4, 3, 2, 2]);
}

/// What many claims of few lanes cost after a crash: see `a_crash_with_a_thousand_claims_…`.
#[tokio::test(start_paused = true)]
async fn c12_a_crash_with_many_claims_in_few_lanes_costs_no_more_than_twice_their_normal_time() {
    const LANES: u32 = 8;
    const LONG: u32 = 40;
    let world = World::with(Habits { batch: 500, ..Habits::default() });
    for number in 1..=LONG {
        (0..LANES).for_each(|lane| world.broker.publish(in_lane(&format!("L{lane}"), number)));
    }
    let start = || {
        world.worker().config(in_order).start(|_| async {
            tokio::time::sleep(SECOND).await;
            Ok(())
        })
    };
    let worker = start();
    tokio::time::sleep(1500 * MS).await;
    worker.die();
    tokio::time::sleep(LEASE).await;
    let again = Instant::now();
    let worker = start();
    world.empty().await;
    let (normal, took) = (SECOND * LONG, again.elapsed());
    assert!(took <= 2 * normal, "{took:?} instead of {normal:?}");
    assert_eq!(worker.end().await.dead_lettered(), 0);
}
