//! Copies of a message: after it, beside it, in one batch with it, and under another payload.

use super::*;
use crate::pipeline::config::{Mode, OnExhausted, OnInProgress, OnMismatch, Policies};

#[tokio::test(start_paused = true)]
async fn c01_a_duplicate_after_completion_is_acked_without_a_run() {
    let world = World::new();
    let worker = world.worker().start_ok();
    world.publish("a");
    tokio::time::sleep(SECOND).await;
    world.publish("a");
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (1, 1));
    assert_eq!(world.ids(), ["a"]);
    assert_eq!(world.broker.acked(), 2);
}

#[tokio::test(start_paused = true)]
async fn rule_1_a_key_in_progress_elsewhere_is_never_acked() {
    let world = World::new();
    let elsewhere = world.claim_elsewhere("a", 60 * SECOND).await;
    world.publish("a");
    let worker = world.worker().start_ok();
    for _ in 0..59 {
        tokio::time::sleep(SECOND).await;
        assert_eq!((world.broker.acked(), world.broker.depth()), (0, 1));
    }
    assert!(world.runs().is_empty());
    assert!(worker.count(Counter::InProgress) > 5);
    // An *observed* completion by another is a reason.
    let complete = crate::store::CompleteRequest::new(elsewhere, 3600 * SECOND);
    world.store.complete(&world.scope, &[complete]).await.pop().unwrap().unwrap();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (0, 1));
    assert!(world.runs().is_empty());
}

#[tokio::test(start_paused = true)]
async fn c02_a_copy_at_another_worker_waits_for_the_first_and_is_then_acked() {
    let world = World::with(Habits { batch: 1, ..Habits::default() });
    let slow = |_| async {
        tokio::time::sleep(SECOND).await;
        Ok(())
    };
    world.publish("a");
    let first = world.worker().start(slow);
    tokio::time::sleep(200 * MS).await;
    let second = world.worker().start(slow);
    // The first worker is busy receiving as well: the copy must wait at either worker.
    world.publish("a");
    tokio::time::sleep(700 * MS).await;
    assert_eq!(world.broker.acked(), 0);
    world.empty().await;
    assert_eq!(world.runs().len(), 1);
    let (first, second) = (first.end().await, second.end().await);
    assert_eq!(first.handled() + second.handled(), 1);
    assert_eq!(first.duplicates() + second.duplicates(), 1);
}

#[tokio::test(start_paused = true)]
async fn c17_copies_in_one_batch_make_one_run_and_share_its_success() {
    let world = World::new();
    world.publish_all(["a", "b", "a", "a"]);
    let worker = world.worker().start_ok();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (2, 2));
    assert_eq!(world.ids(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn rule_9_a_batch_for_the_store_never_holds_one_key_twice() {
    let world = World::with(Habits { duplicate: 0.5, seed: 3, ..Habits::default() });
    let ids: Vec<String> = (0..200).map(|number| (number % 40).to_string()).collect();
    world.publish_all(ids.iter().map(String::as_str));
    let worker = world.worker().config(|config| config.max_batch = 7).start(|message| async move {
        if message.attempt() == 1 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    });
    worker.store.record();
    world.empty().await;
    let store = worker.store.clone();
    let summary = worker.end().await;
    assert_eq!(summary.handled(), 40);
    for call in store.recorded() {
        let distinct: std::collections::HashSet<_> = call.keys.iter().collect();
        assert_eq!(distinct.len(), call.keys.len(), "{call:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rule_9_a_copy_of_a_message_that_is_retried_waits_and_uses_up_no_attempt() {
    let world = World::new();
    world.publish_all(["a", "a"]);
    let worker = world.worker().start(|message| async move {
        if message.attempt() < 3 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates(), summary.retried()), (1, 1, 2));
    let attempts: Vec<_> = world.runs().iter().map(|run| run.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn rule_9_copies_of_a_message_that_goes_back_to_the_broker_go_back_with_it_without_attempts() {
    let world = World::with(Habits { delayed_retry: true, ..Habits::default() });
    world.publish_all(["a", "a"]);
    let worker =
        world.worker().config(|config| config.retry.backoff.initial = 2 * SECOND).start(
            |message| async move {
                if message.attempt() < 2 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
            },
        );
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates(), summary.given_back()), (1, 1, 2));
    let attempts: Vec<_> = world.runs().iter().map(|run| run.attempt).collect();
    assert_eq!(attempts, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn rule_9_a_copy_of_a_dead_lettered_message_is_acked_without_a_second_letter() {
    let world = World::new();
    world.publish_all(["a", "a"]);
    let worker = world.worker().start(|_| async { Err(HandlerError::permanent("never")) });
    world.empty().await;
    world.publish("a");
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.dead_lettered(), summary.duplicates()), (1, 2));
    assert_eq!((world.runs().len(), world.letters.sent().len()), (1, 1));
}

fn with_payload(id: &str, payload: &'static str) -> MessageBuilder {
    Message::builder(payload).header("id", id.to_owned())
}

#[tokio::test(start_paused = true)]
async fn c27_a_key_that_comes_with_another_payload_is_dead_lettered_not_silently_acked() {
    let world = World::new();
    let worker = world.worker().start_ok();
    world.broker.publish(with_payload("a", "pay 7"));
    world.empty().await;
    world.broker.publish(with_payload("a", "pay 8"));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 1));
    assert_eq!(summary.counters().get(Counter::Mismatches), 1);
    let letters = world.letters.sent();
    assert_eq!(&letters[0].payload[..], b"pay 8");
    assert_eq!(world.state("a").await, KeyState::Completed);
}

#[tokio::test(start_paused = true)]
async fn rule_9_another_payload_in_the_same_batch_is_no_copy() {
    let world = World::new();
    world.broker.publish(with_payload("a", "pay 7"));
    world.broker.publish(with_payload("a", "pay 8"));
    world.broker.publish(with_payload("a", "pay 7"));
    world.broker.publish(with_payload("a", "pay 8"));
    let worker = world.worker().start_ok();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::Duplicates)), (1, 1));
    assert_eq!(summary.dead_lettered() + summary.counters().get(Counter::DuplicatesOfDead), 2);
    assert!(world.letters.sent().iter().all(|letter| &letter.payload[..] == b"pay 8"));
    assert!(!world.letters.sent().is_empty());
}

#[tokio::test(start_paused = true)]
async fn on_mismatch_ack_acks_and_counts() {
    let world = World::new();
    let worker = world.worker().config(|config| config.policies.on_mismatch = OnMismatch::Ack).start_ok();
    world.broker.publish(with_payload("a", "pay 7"));
    world.broker.publish(with_payload("a", "pay 8"));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::MismatchAcked)), (1, 1));
    assert!(world.letters.sent().is_empty());
}

#[tokio::test(start_paused = true)]
async fn on_mismatch_process_runs_the_second_message_without_a_claim_and_counts_it() {
    for apart in [Duration::ZERO, SECOND] {
        let world = World::new();
        let worker =
            world.worker().config(|config| config.policies.on_mismatch = OnMismatch::Process).start_ok();
        world.broker.publish(with_payload("a", "pay 7"));
        tokio::time::sleep(apart).await;
        world.broker.publish(with_payload("a", "pay 8"));
        world.broker.publish(with_payload("a", "pay 7"));
        world.empty().await;
        let summary = worker.end().await;
        assert_eq!((summary.handled(), summary.duplicates(), world.runs().len()), (2, 1, 2));
        let count = |counter| summary.counters().get(counter);
        assert_eq!((count(Counter::Mismatches), count(Counter::Unprotected)), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn observe_mode_runs_every_delivery_and_counts_the_duplicates() {
    let world = World::new();
    let _elsewhere = world.claim_elsewhere("held", 3600 * SECOND).await;
    world.publish_all(["a", "b", "a", "held", "a"]);
    let worker = world.worker().config(|config| config.mode = Mode::Observe).start_ok();
    world.empty().await;
    world.publish("b");
    world.empty().await;
    world.broker.publish(with_payload("b", "another order"));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.received(), summary.handled(), summary.duplicates()), (7, 7, 0));
    let count = |counter| summary.counters().get(counter);
    assert_eq!((count(Counter::ObservedDuplicates), count(Counter::Mismatches)), (4, 1));
    assert_eq!(world.runs().len(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_parked_delivery_is_not_seen_before_the_lease_of_another_is_over() {
    let world = World::with(Habits { delayed_retry: true, ..Habits::default() });
    let _elsewhere = world.claim_elsewhere("a", 20 * SECOND).await;
    world.publish("a");
    let worker = world
        .worker()
        .config(|config| {
            config.policies = Policies { on_in_progress: OnInProgress::Park, ..Policies::default() };
        })
        .start_ok();
    world.empty().await;
    assert_eq!(worker.count(Counter::InProgress), 1);
    assert_eq!(world.broker.deliveries(), 2);
    assert!(world.since_start(world.runs()[0].started) >= 20 * SECOND);
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn park_falls_back_to_holding_where_the_broker_cannot_wait() {
    let world = World::new();
    let _elsewhere = world.claim_elsewhere("a", 20 * SECOND).await;
    world.publish("a");
    let worker =
        world.worker().config(|config| config.policies.on_in_progress = OnInProgress::Park).start_ok();
    world.empty().await;
    assert_eq!(world.broker.deliveries(), 1);
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn without_a_destination_a_mismatch_is_kept_in_the_source() {
    let world = World::new();
    let worker = world
        .worker()
        .with(|worker| worker.letters = false)
        .config(|config| config.policies.on_exhausted = OnExhausted::Park)
        .start_ok();
    world.broker.publish(with_payload("a", "pay 7"));
    world.broker.publish(with_payload("a", "pay 8"));
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((world.broker.acked(), world.broker.depth()), (1, 1));
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.parked(), summary.given_back()), (1, 1, 1));
}
