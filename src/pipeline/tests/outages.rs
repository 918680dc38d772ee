//! A store that is down, slow, or loses its replies: fail closed, wait without haste, and never take unknown for failed.

use super::*;
use crate::pipeline::config::OnStoreDown;
use crate::testing::{Fault, Operation};

#[tokio::test(start_paused = true)]
async fn c31_with_the_store_down_at_the_start_nothing_is_taken_and_the_worker_recovers_by_itself() {
    let world = World::new();
    world.publish_all(["a", "b"]);
    let worker = world.worker();
    worker.store.go_down();
    let worker = worker.start_ok();
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((world.broker.deliveries(), world.broker.acked(), world.runs().len()), (0, 0, 0));
    assert!(!worker.counters.is_store_up());
    worker.store.come_up();
    let up = Instant::now();
    world.empty().await;
    assert!(up.elapsed() <= 5 * SECOND, "{:?}", up.elapsed());
    let summary = worker.end().await;
    assert_eq!(summary.handled(), 2);
}

#[tokio::test(start_paused = true)]
async fn rule_5_an_outage_of_60_s_starts_nothing_acks_nothing_pauses_intake_and_asks_without_haste() {
    let world = World::with(Habits { batch: 10, ..Habits::default() });
    let worker = world.worker().start(|_| async {
        tokio::time::sleep(100 * MS).await;
        Ok(())
    });
    world.publish("before");
    world.empty().await;
    worker.store.go_down();
    let (claims, runs, deliveries) =
        (worker.store.calls(Operation::Claim), world.runs().len(), world.broker.deliveries());
    let ids: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    world.publish_all(ids.iter().map(String::as_str));
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((world.runs().len(), world.broker.acked()), (runs, 1));
    let asked = worker.store.calls(Operation::Claim) - claims;
    assert!((12..=40).contains(&asked), "{asked} claim calls in 60 s");
    // Deliveries received before the outage counted as one of the whole store are held, not released and received again.
    assert!(world.broker.deliveries() - deliveries <= 30, "{} taken", world.broker.deliveries());
    assert!(!worker.counters.is_store_up());
    worker.store.come_up();
    let up = Instant::now();
    eventually("work goes on", || world.runs().len() > runs).await;
    assert!(up.elapsed() <= 5 * SECOND, "{:?}", up.elapsed());
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back()), (101, 0));
    assert_eq!(world.runs().len(), 101, "every message ran once");
    assert!(summary.counters().is_store_up());
}

#[tokio::test(start_paused = true)]
async fn c32_an_outage_while_handlers_run_acks_none_of_them_until_their_completions_are_written() {
    let world = World::new();
    world.publish_all(["a", "b", "c"]);
    let worker = world.worker().start(|_| async {
        tokio::time::sleep(500 * MS).await;
        Ok(())
    });
    tokio::time::sleep(100 * MS).await;
    worker.store.go_down();
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(world.broker.acked(), 0);
    assert!(world.runs().iter().all(|run| run.ended.is_some()));
    let completes = worker.store.calls(Operation::Complete);
    assert!((20..=150).contains(&completes), "{completes} completion calls in 60 s");
    worker.store.come_up();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), world.runs().len()), (3, 3), "the effects were not repeated");
}

#[tokio::test(start_paused = true)]
async fn c33_slow_and_lossy_calls_cost_time_and_nothing_else() {
    let world = World::new();
    let ids: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    world.publish_all(ids.iter().map(String::as_str));
    let worker = world.worker().config(|config| {
        config.lease = 30 * SECOND;
        config.store_timeout = 5 * SECOND;
        config.max_batch = 16;
    });
    worker.store.set(Faults {
        refused: 0.1,
        reply_lost: 0.05,
        latency: SECOND,
        reply_latency: SECOND,
        seed: 11,
    });
    let worker = worker.start_ok();
    world.empty().await;
    assert_eq!(world.runs().len(), 300, "one run each");
    let calls = worker.store.calls(Operation::Claim) + worker.store.calls(Operation::Complete);
    assert!(calls < 400, "{calls} calls for 300 messages");
    let summary = worker.end().await;
    assert_eq!(summary.handled(), 300);
    assert!(summary.counters().get(Counter::StoreErrors) > 0);
}

#[tokio::test(start_paused = true)]
async fn rule_4_a_claim_whose_reply_was_lost_recognises_itself() {
    let world = World::new();
    world.publish_all(["a", "b"]);
    let worker = world.worker();
    worker.store.next(Operation::Claim, Fault::ReplyLost);
    let worker = worker.start_ok();
    world.empty().await;
    assert!(
        world.runs().iter().all(|run| world.since_start(run.started) < LEASE),
        "it did not wait for itself"
    );
    for id in ["a", "b"] {
        assert_eq!(world.record(id).await.unwrap().lost, 0);
    }
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::InProgress)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn c10_a_completion_whose_reply_was_lost_is_repeated_and_acked_without_another_run() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker();
    worker.store.next(Operation::Complete, Fault::ReplyLost);
    worker.store.next(Operation::Complete, Fault::ReplyHangs);
    worker.store.next(Operation::Complete, Fault::Refused);
    let worker = worker.start_ok();
    world.empty().await;
    assert_eq!((world.runs().len(), worker.store.calls(Operation::Complete)), (1, 4));
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (1, 0));
    assert_eq!(summary.counters().get(Counter::SuspectedDoubleEffects), 0);
}

#[tokio::test(start_paused = true)]
async fn rule_4_an_unknown_completion_is_never_released_or_written_as_failed() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker();
    for _ in 0..20 {
        worker.store.next(Operation::Complete, Fault::Refused);
    }
    let worker = worker.start_ok();
    world.empty().await;
    let (releases, fails) = (worker.store.calls(Operation::Release), worker.store.calls(Operation::Fail));
    assert_eq!((releases, fails, world.runs().len()), (0, 0, 1));
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn c39_on_store_down_process_goes_on_and_counts_each_run_as_unprotected() {
    let world = World::with(Habits { batch: 4, ..Habits::default() });
    let worker = world.worker().config(|config| {
        config.policies.on_store_down = OnStoreDown::Process;
        config.concurrency = 2;
    });
    worker.store.next(Operation::Claim, Fault::Refused);
    let worker = worker.start(|_| async {
        tokio::time::sleep(SECOND).await;
        Ok(())
    });
    world.publish("a");
    tokio::time::sleep(10 * MS).await;
    worker.store.go_down();
    world.publish_all(["b", "c", "d", "e", "f", "g", "a"]);
    world.empty().await;
    assert!(world.since_start(Instant::now()) < 60 * SECOND, "{:?}", world.since_start(Instant::now()));
    worker.store.come_up();
    world.publish("h");
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!(summary.handled(), 8 + u64::try_from(world.runs_of("a").len() - 1).unwrap());
    assert!(summary.counters().get(Counter::Unprotected) >= 7);
    assert_eq!(world.state("h").await, KeyState::Completed);
    assert_eq!(world.state("b").await, KeyState::Absent);
}

#[tokio::test(start_paused = true)]
async fn rule_14_a_damaged_record_holds_its_own_message_and_no_other() {
    let world = World::new();
    let worker = world.worker();
    worker.store.corrupt(world.key("bad"));
    world.publish_all(["a", "bad", "b"]);
    let worker = worker.start_ok();
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((world.broker.acked(), world.ids()), (2, vec!["a".to_owned(), "b".to_owned()]));
    let asked = worker.store.calls(Operation::Claim);
    assert!(asked <= 15, "{asked} claim calls in 60 s");
    assert!(worker.counters.is_store_up());
    worker.store.mend(&world.key("bad"));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!(summary.handled(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_is_refused_for_good_is_not_acked_and_counts_as_a_suspected_double() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().start(|_| async {
        tokio::time::sleep(100 * MS).await;
        Ok(())
    });
    eventually("the handler runs", || world.runs().len() == 1).await;
    worker.store.corrupt(world.key("a"));
    tokio::time::sleep(SECOND).await;
    assert_eq!((world.broker.acked(), worker.count(Counter::SuspectedDoubleEffects)), (0, 1));
    worker.store.mend(&world.key("a"));
    world.empty().await;
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_does_not_use_up_attempts() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().start(|message| async move {
        tokio::time::sleep(100 * MS).await;
        if message.attempt() < 3 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    });
    for _ in 0..10 {
        tokio::time::sleep(20 * MS).await;
        worker.store.go_down();
        tokio::time::sleep(LEASE / 2).await;
        worker.store.come_up();
        tokio::time::sleep(200 * MS).await;
    }
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 0));
    let last = world.runs().pop().unwrap();
    assert_eq!(last.attempt, 3);
}
