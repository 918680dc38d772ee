//! Checks what copies of a message wait for, in its own lane and in others.

use super::sequences::{assert_one_by_one, for_10_ms, in_lane, in_order, numbered};
use super::*;
use crate::pipeline::config::Ordering;
use crate::testing::{Fault, Operation};

#[tokio::test(start_paused = true)]
async fn rule_9_a_second_message_with_the_same_key_waits_for_the_outcome_of_the_first() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    for number in [1, 1, 2, 1, 3] {
        world.broker.publish(in_lane("A", number));
    }
    let worker = world.worker().config(in_order).start(|message| async move {
        let fails = id_of(&message) == "A#1" && message.attempt() == 1;
        if fails { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    });
    world.empty().await;
    assert_eq!(world.ids(), numbered("A", [1, 1, 2, 3]));
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (3, 2));
}

/// The lane would advance twice if a copy left it out of turn, and two of its messages would run at once.
#[tokio::test(start_paused = true)]
async fn a_copy_behind_its_original_does_not_let_two_sequences_of_a_lane_run_at_once() {
    let world = World::with(Habits { batch: 128, ..Habits::default() });
    [1, 1].into_iter().chain(2..=80).for_each(|number| world.broker.publish(in_lane("A", number)));
    let worker = world.worker().config(in_order).start(for_10_ms);
    world.empty().await;
    assert_eq!(world.ids(), numbered("A", 1..=80));
    assert_one_by_one(&world);
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (80, 1));
}

#[tokio::test(start_paused = true)]
async fn copies_in_two_lanes_wait_for_no_message_that_waits_in_its_lane() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    // Each lane fails at first, and what it claimed behind that is the first of the other one.
    let copy = |lane: &str, id: &str| world.broker.publish(message(id).order_key(lane.to_owned()));
    copy("A", "x");
    copy("B", "y");
    ["k", "l"].iter().for_each(|id| copy("A", id));
    ["l", "k"].iter().for_each(|id| copy("B", id));
    let worker = world.worker().config(in_order).start(|message| async move {
        tokio::time::sleep(10 * MS).await;
        let fails = ["x", "y"].contains(&id_of(&message).as_str()) && message.attempt() == 1;
        if fails { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn a_copy_in_another_lane_does_not_wait_for_what_stops_the_lane_of_the_first() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    let publish = |lane: &str, id: &str| world.broker.publish(message(id).order_key(lane.to_owned()));
    publish("A", "x");
    publish("A", "k");
    publish("B", "k");
    let worker = world.worker().config(in_order).start(|message| async move {
        tokio::time::sleep(10 * MS).await;
        let fails = id_of(&message) == "x" && message.attempt() == 1;
        if fails { Err(HandlerError::retry_after(600 * SECOND, "not yet")) } else { Ok(()) }
    });
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(world.ids(), ["x", "k"]);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (2, 1));
}

/// A copy that led while a suspect had its turn made both wait for ever.
#[tokio::test(start_paused = true)]
async fn a_suspect_whose_key_a_copy_leads_takes_no_turn_while_the_store_is_down() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    for (lane, id) in [("A", "x"), ("A", "k"), ("B", "k")] {
        world.broker.publish(message(id).order_key(lane.to_owned()));
    }
    for id in ["x", "k"] {
        let _ = world.claim_elsewhere(id, LEASE).await;
    }
    tokio::time::sleep(LEASE).await;
    let worker = world.worker().config(in_order);
    let store = worker.store.clone();
    let worker = worker.start(move |message| {
        let store = store.clone();
        async move {
            tokio::time::sleep(10 * MS).await;
            if id_of(&message) == "x" {
                store.next(Operation::Claim, Fault::Refused);
            }
            Ok(())
        }
    });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_a_parked_message_holds_up_its_lane_no_longer_than_a_lease() {
    let world = World::new();
    world.letters.set_limit(300);
    for _ in 0..2 {
        world.broker.publish(message("bad").header("padding", vec![b'x'; 500]).order_key("a"));
    }
    world.broker.publish(message("after").order_key("a"));
    let worker =
        world.worker().config(|config| config.ordering = Ordering::BrokerKey).start(|message| async move {
            let bad = id_of(&message) == "bad";
            if bad { Err(HandlerError::permanent("broken")) } else { Ok(()) }
        });
    eventually("the next of the lane is done", || world.broker.acked() == 1).await;
    assert!(world.since_start(Instant::now()) < 2 * LEASE);
    world.letters.set_limit(usize::MAX);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered(), world.letters.sent().len()), (1, 1, 1));
}
