//! Checks the differences between brokers: waiting, heartbeats, settlements that fail or come too late.

use super::*;
use crate::pipeline::config::Ordering;
use crate::testing::{Fault, Operation};

fn with_visibility() -> World {
    World::with(Habits { visibility: Some(3 * SECOND), ..Habits::default() })
}

#[tokio::test(start_paused = true)]
async fn rule_11_the_brokers_deadline_is_kept_from_receive_on_also_for_those_that_wait_in_lanes() {
    let world = with_visibility();
    for number in 1..=4 {
        world.broker.publish(message(&format!("A#{number}")).order_key("A"));
    }
    let worker = world.worker().config(|config| config.ordering = Ordering::BrokerKey).start(|_| async {
        tokio::time::sleep(7 * SECOND).await;
        Ok(())
    });
    world.empty().await;
    assert_eq!(world.broker.deliveries(), 4, "none came twice");
    assert_eq!(world.ids(), ["A#1", "A#2", "A#3", "A#4"]);
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn rule_6_a_key_in_progress_elsewhere_and_a_store_that_is_down_burn_no_delivery() {
    let world = with_visibility();
    let _elsewhere = world.claim_elsewhere("held", 20 * SECOND).await;
    world.publish("held");
    let worker = world.worker().start_ok();
    tokio::time::sleep(19 * SECOND).await;
    worker.store.go_down();
    world.publish("other");
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(world.broker.deliveries(), 1 + u64::from(world.broker.deliveries() > 1));
    worker.store.come_up();
    world.empty().await;
    assert_eq!(world.broker.deliveries(), 2, "each message was delivered once");
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_is_held_keeps_its_delivery_alive() {
    let world = with_visibility();
    world.publish("a");
    let worker = world.worker().start(|message| async move {
        if message.attempt() == 1 { Err(HandlerError::retry_after(20 * SECOND, "later")) } else { Ok(()) }
    });
    world.empty().await;
    assert_eq!((world.broker.deliveries(), world.runs().len()), (1, 2));
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn rule_11_a_delivery_that_the_broker_took_back_tells_its_handler() {
    let world = with_visibility();
    world.publish("a");
    let worker =
        world.worker().config(|config| config.handler_timeout = 60 * SECOND).start(|message| async move {
            let cancellation = message.cancellation();
            tokio::select! {
                () = cancellation.cancelled() => Err(HandlerError::retry("told to stop")),
                () = tokio::time::sleep(30 * SECOND) => Ok(()),
            }
        });
    tokio::time::sleep(SECOND).await;
    world.broker.disconnect();
    eventually("the handler was told", || world.runs()[0].ended.is_some()).await;
    let (at, outcome) = world.runs()[0].ended.clone().unwrap();
    assert!(
        outcome.is_err() && at - world.runs()[0].started <= 3 * SECOND,
        "{:?}",
        at - world.runs()[0].started
    );
    worker.shutdown.cancel();
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_fails_for_a_moment_is_repeated_before_the_deadline() {
    let world = with_visibility();
    world.publish("a");
    let worker = world.worker().start(|_| async {
        tokio::time::sleep(9 * SECOND).await;
        Ok(())
    });
    worker.broker.next(Operation::Extend, Fault::Refused);
    world.empty().await;
    assert_eq!(world.broker.deliveries(), 1);
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_fails_several_times_in_a_row_is_repeated_at_each_tick() {
    let world = with_visibility();
    world.publish("a");
    let worker = world.worker().start(|_| async {
        tokio::time::sleep(9 * SECOND).await;
        Ok(())
    });
    for _ in 0..4 {
        worker.broker.next(Operation::Extend, Fault::Refused);
    }
    world.empty().await;
    assert_eq!((world.broker.deliveries(), world.runs().len()), (1, 1));
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn c08_an_ack_whose_reply_was_lost_is_repeated_and_its_message_does_not_run_again() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().start_ok();
    worker.broker.next(Operation::Settle, Fault::ReplyLost);
    world.empty().await;
    tokio::time::sleep(SECOND).await;
    assert_eq!(world.runs().len(), 1);
    let summary = worker.end().await;
    assert_eq!(summary.counters().get(Counter::SettleErrors), 1);
    assert_eq!(summary.counters().get(Counter::SettledTooLate), 1);
}

#[tokio::test(start_paused = true)]
async fn c08_an_ack_that_comes_too_late_leaves_a_duplicate() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().start(|_| async {
        tokio::time::sleep(500 * MS).await;
        Ok(())
    });
    tokio::time::sleep(100 * MS).await;
    world.broker.disconnect();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.received(), summary.handled(), summary.duplicates()), (2, 1, 1));
    assert_eq!((summary.counters().get(Counter::SettledTooLate), world.runs().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn settlements_that_fail_are_repeated_until_they_get_through() {
    let world =
        World::with(Habits { settle_fails: 0.5, settle_reply_lost: 0.2, seed: 2, ..Habits::default() });
    let ids: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    world.publish_all(ids.iter().map(String::as_str));
    let worker = world.worker().start_ok();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.received(), summary.handled(), world.broker.acked()), (100, 100, 100));
    assert!(summary.counters().get(Counter::SettleErrors) > 50);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_again_and_again_loses_and_repeats_nothing() {
    let world = World::with(Habits { disconnect: 0.2, batch: 10, seed: 4, ..Habits::default() });
    let ids: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let worker = world.worker().start(|_| async {
        tokio::time::sleep(30 * MS).await;
        Ok(())
    });
    for chunk in ids.chunks(20) {
        world.publish_all(chunk.iter().map(String::as_str));
        tokio::time::sleep(100 * MS).await;
    }
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), world.runs().len()), (200, 200));
    assert!(summary.duplicates() > 0 && summary.counters().get(Counter::ReceiveErrors) > 0);
}

#[tokio::test(start_paused = true)]
async fn a_long_retry_is_spent_in_a_broker_that_can_wait_and_a_short_one_is_held() {
    for (pause, deliveries) in [(500 * MS, 1), (2 * SECOND, 2)] {
        let world = World::with(Habits { delayed_retry: true, ..Habits::default() });
        world.publish("a");
        let worker = world.worker().config(|config| config.retry.backoff.initial = pause).start(
            |message| async move {
                if message.attempt() == 1 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
            },
        );
        world.empty().await;
        assert_eq!(world.broker.deliveries(), deliveries);
        let runs = world.runs();
        assert_eq!((runs.len(), runs[1].attempt), (2, 2), "attempts are counted in the store");
        assert!(runs[1].started - runs[0].started >= pause);
        let _ = worker.end().await;
    }
}
