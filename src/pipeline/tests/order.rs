//! Checks which messages wait for which.

use super::sequences::{in_lane, in_order, numbered};
use super::*;
use crate::message::Position;
use crate::pipeline::config::Ordering;
use crate::testing::{Fault, Operation};

fn of_group(group: &str, number: u32) -> MessageBuilder {
    let id = format!("{group}#{number}");
    message(&id).order_key(group.to_owned()).header("group", group.to_owned())
}

/// The first run that ended well of each id, in the order of their ends.
fn first_effects(world: &World, group: &str) -> Vec<u32> {
    let mut effects: Vec<_> = world
        .runs()
        .into_iter()
        .filter_map(|run| {
            let (at, outcome) = run.ended?;
            let (own, number) = run.id.split_once('#')?;
            (outcome.is_ok() && own == group).then(|| (at, number.parse().unwrap()))
        })
        .collect();
    effects.sort_by_key(|(at, _)| *at);
    let mut seen = std::collections::HashSet::new();
    effects
        .into_iter()
        .map(|(_, number): (Instant, u32)| number)
        .filter(|number| seen.insert(*number))
        .collect()
}

async fn b_fails_twice(message: Message) -> Handled {
    tokio::time::sleep(10 * MS).await;
    if id_of(&message) == "A#2" && message.attempt() < 3 {
        return Err(HandlerError::retry("not yet"));
    }
    Ok(())
}

async fn c25(ordering: Ordering) {
    let world = World::new();
    for number in 1..=5 {
        world.broker.publish(of_group("A", number));
        world.broker.publish(of_group("B", number));
    }
    let worker = world.worker().config(|config| config.ordering = ordering).start(b_fails_twice);
    world.empty().await;
    assert_eq!(first_effects(&world, "A"), [1, 2, 3, 4, 5]);
    assert_eq!(first_effects(&world, "B"), [1, 2, 3, 4, 5]);
    let end = |id| world.runs_of(id).last().unwrap().ended.clone().unwrap().0;
    assert!(end("B#5") < end("A#2"), "the other group was not delayed");
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.retried(), summary.given_back()), (10, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn c25_a_retry_blocks_its_own_broker_key_and_no_other() {
    c25(Ordering::BrokerKey).await;
}

#[tokio::test(start_paused = true)]
async fn c25_a_retry_blocks_its_own_key_of_a_named_source_and_no_other() {
    c25(Ordering::By(KeySource::Header("group".into()))).await;
}

#[tokio::test(start_paused = true)]
async fn without_ordering_a_retry_delays_nobody() {
    let world = World::new();
    (1..=3).for_each(|number| world.broker.publish(of_group("A", number)));
    let worker = world.worker().start(b_fails_twice);
    world.empty().await;
    assert_eq!(first_effects(&world, "A"), [1, 3, 2]);
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn rule_10_a_retry_in_order_is_held_even_where_the_broker_could_wait() {
    let world = World::with(Habits { delayed_retry: true, ..Habits::default() });
    (1..=3).for_each(|number| world.broker.publish(of_group("A", number)));
    let worker = world
        .worker()
        .config(|config| {
            config.ordering = Ordering::BrokerKey;
            config.retry.backoff.initial = 3 * SECOND;
        })
        .start(b_fails_twice);
    world.empty().await;
    assert_eq!(first_effects(&world, "A"), [1, 2, 3]);
    let summary = worker.end().await;
    assert_eq!(summary.given_back(), 0);
}

#[tokio::test(start_paused = true)]
async fn messages_of_one_partition_run_one_after_the_other() {
    let world = World::new();
    let worker = world.worker().config(|config| config.ordering = Ordering::Partition).start(|_| async {
        tokio::time::sleep(10 * MS).await;
        Ok(())
    });
    // The memory broker has one partition.
    (1..=5).for_each(|number| world.broker.publish(of_group("A", number)));
    world.empty().await;
    let runs = world.runs();
    assert!(runs.windows(2).all(|pair| pair[1].started >= pair[0].ended.clone().unwrap().0));
    assert_eq!(first_effects(&world, "A"), [1, 2, 3, 4, 5]);
    let _ = worker.end().await;
    let position = |partition| Position { incarnation: "log".into(), partition, offset: 0 };
    assert_ne!(position(0), position(1));
}

#[tokio::test(start_paused = true)]
async fn messages_without_an_order_key_wait_for_nobody() {
    let world = World::new();
    world.publish_all(["a", "b", "c"]);
    let worker = world.worker().config(|config| config.ordering = Ordering::BrokerKey).start(|_| async {
        tokio::time::sleep(SECOND).await;
        Ok(())
    });
    world.empty().await;
    let runs = world.runs();
    assert!(runs.iter().all(|run| run.started == runs[0].started));
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn messages_of_a_handler_slower_than_a_sequence_may_be_are_not_claimed_and_released_in_turns() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    (1..=60).for_each(|number| world.broker.publish(in_lane("A", number)));
    let worker = world.worker().config(in_order).start(|_| async {
        tokio::time::sleep(300 * MS).await;
        Ok(())
    });
    world.empty().await;
    assert_eq!(world.ids(), numbered("A", 1..=60));
    // After the first message, and after 32 more.
    assert_eq!(worker.store.calls(Operation::Release), 2);
    assert_eq!(worker.end().await.handled(), 60);
}

#[tokio::test(start_paused = true)]
async fn rule_10_with_a_lane_batch_of_one_the_next_starts_only_after_the_previous_is_settled() {
    let world = World::new();
    (1..=2).for_each(|number| world.broker.publish(of_group("A", number)));
    let worker =
        world.worker().config(|config| (config.ordering, config.lane_batch) = (Ordering::BrokerKey, 1));
    // Its effect has happened, its completion is late: it is not settled.
    worker.store.next(Operation::Complete, Fault::Late(700 * MS));
    let worker = worker.start_ok();
    world.empty().await;
    let runs = world.runs();
    assert!(runs[1].started - runs[0].ended.clone().unwrap().0 >= 700 * MS);
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn rule_10_a_key_in_progress_elsewhere_blocks_its_lane() {
    let world = World::new();
    (1..=3).for_each(|number| world.broker.publish(of_group("A", number)));
    world.broker.publish(of_group("B", 1));
    let _elsewhere = world.claim_elsewhere("A#1", 10 * SECOND).await;
    let worker = world.worker().config(|config| config.ordering = Ordering::BrokerKey).start_ok();
    tokio::time::sleep(9 * SECOND).await;
    assert_eq!(world.ids(), ["B#1"]);
    world.empty().await;
    assert_eq!(first_effects(&world, "A"), [1, 2, 3]);
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn rule_10_a_dead_letter_frees_its_lane() {
    let world = World::new();
    (1..=3).for_each(|number| world.broker.publish(of_group("A", number)));
    let worker =
        world.worker().config(|config| config.ordering = Ordering::BrokerKey).start(|message| async move {
            if id_of(&message) == "A#2" { Err(HandlerError::permanent("never")) } else { Ok(()) }
        });
    world.empty().await;
    assert_eq!(first_effects(&world, "A"), [1, 3]);
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn rule_10_copies_do_not_disturb_the_order_and_do_not_block_a_lane() {
    let world = World::with(Habits { duplicate: 0.4, seed: 5, batch: 3, ..Habits::default() });
    for number in 1..=30 {
        world.broker.publish(of_group("A", number));
        world.broker.publish(of_group("B", number));
    }
    let worker = world.worker().config(|config| config.ordering = Ordering::BrokerKey).start(b_fails_twice);
    world.empty().await;
    let expected: Vec<u32> = (1..=30).collect();
    assert_eq!((first_effects(&world, "A"), first_effects(&world, "B")), (expected.clone(), expected));
    let summary = worker.end().await;
    assert_eq!(summary.handled(), 60);
}

#[tokio::test(start_paused = true)]
async fn c26_the_order_of_first_effects_survives_the_death_of_a_worker() {
    let world = World::with(Habits { batch: 16, ..Habits::default() });
    let groups: Vec<String> = (0..8).map(|group| format!("G{group}")).collect();
    for number in 1..=50 {
        groups.iter().for_each(|group| world.broker.publish(of_group(group, number)));
    }
    let start = || {
        world.worker().config(|config| config.ordering = Ordering::BrokerKey).start(|_| async {
            tokio::time::sleep(7 * MS).await;
            Ok(())
        })
    };
    for life in [90 * MS, 33 * MS, 61 * MS] {
        let worker = start();
        tokio::time::sleep(life).await;
        worker.die();
    }
    let worker = start();
    world.empty().await;
    let expected: Vec<u32> = (1..=50).collect();
    for group in &groups {
        assert_eq!(first_effects(&world, group), expected, "{group}");
    }
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_store_being_down_does_not_disturb_the_order() {
    let world = World::new();
    for number in 1..=20 {
        world.broker.publish(of_group("A", number));
        world.broker.publish(of_group("B", number));
    }
    let worker = world.worker().config(|config| config.ordering = Ordering::BrokerKey);
    worker.store.set(Faults { refused: 0.3, reply_lost: 0.2, latency: 20 * MS, seed: 9, ..Faults::NONE });
    let worker = worker.start_ok();
    world.empty().await;
    let expected: Vec<u32> = (1..=20).collect();
    assert_eq!((first_effects(&world, "A"), first_effects(&world, "B")), (expected.clone(), expected));
    let _ = worker.end().await;
}
