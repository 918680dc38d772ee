//! Runs that fail: retried with a pause, counted in the store, and at last dead-lettered.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::pipeline::config::OnExhausted;
use crate::testing::{Fault, Operation};

#[tokio::test(start_paused = true)]
async fn c05_a_failed_run_frees_its_key_before_the_next_one_which_starts_after_the_backoff() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().start(|message| async move {
        if message.attempt() == 1 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    });
    world.empty().await;
    let runs = world.runs();
    let pause = runs[1].started - runs[0].started;
    assert!(pause >= 50 * MS && pause < 500 * MS, "{pause:?}");
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.retried()), (1, 1));
    assert_eq!(summary.counters().get(Counter::InProgress), 0, "the claim was released by the failure");
}

#[tokio::test(start_paused = true)]
async fn c20_a_panicking_handler_is_a_failed_run_and_the_others_go_on() {
    let world = World::new();
    let ids: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    world.publish_all(ids.iter().map(String::as_str));
    let worker = world.worker().start(|message| async move {
        assert!(id_of(&message) != "42" || message.attempt() > 1, "the answer");
        Ok(())
    });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::Panics)), (100, 1));
    assert_eq!(world.runs().len(), 101);
}

#[tokio::test(start_paused = true)]
async fn rule_14_a_handler_that_panics_before_it_returns_a_future_stops_nobody_else() {
    let world = World::new();
    world.publish_all(["a", "bad", "b"]);
    let worker = world.worker().start(|message| {
        assert!(id_of(&message) != "bad", "before any future");
        async { Ok(()) }
    });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (2, 1));
    assert_eq!(world.runs_of("a").len(), 1);
}

/// A handler whose very call panics, without an async function around it.
struct PanicsWhenCalled;

impl crate::handler::Handler for PanicsWhenCalled {
    type Output = ();

    #[allow(clippy::manual_async_fn)] // the panic must come before the future
    fn handle(&self, message: Message) -> impl Future<Output = Handled> + Send {
        assert!(id_of(&message) != "bad", "before any future");
        async { Ok(()) }
    }
}

#[tokio::test(start_paused = true)]
async fn rule_14_a_panic_in_the_call_of_a_handler_is_a_failed_run_too() {
    let world = World::new();
    world.publish_all(["a", "bad", "b"]);
    let (builder, worker) = world.worker().pipeline();
    let worker = worker.run(builder.handler(PanicsWhenCalled).unwrap());
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (2, 1));
    assert_eq!(summary.counters().get(Counter::Panics), 3);
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("while being dropped");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rule_14_a_panic_in_the_drop_of_a_timed_out_handler_stops_nobody_else() {
    let world = World::new();
    world.publish_all(["a", "bad", "b"]);
    let worker = world.worker().start(|message| async move {
        if id_of(&message) == "bad" {
            let _armed = PanicsWhenDropped;
            std::future::pending::<()>().await;
        }
        Ok(())
    });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (2, 1));
    assert_eq!(summary.counters().get(Counter::Timeouts), 3);
}

#[tokio::test(start_paused = true)]
async fn c21_a_handler_that_hangs_is_stopped_retried_and_dead_lettered() {
    let world = World::new();
    world.publish_all(["hangs", "a"]);
    let worker = world.worker().start(|message| async move {
        if id_of(&message) == "hangs" {
            std::future::pending::<()>().await;
        }
        Ok(())
    });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 1));
    assert_eq!(summary.counters().get(Counter::Timeouts), 3);
    let runs = world.runs_of("hangs");
    assert_eq!(runs.len(), 3);
    for (earlier, later) in runs.iter().zip(&runs[1..]) {
        let between = later.started - earlier.started;
        assert!(between >= 11 * SECOND, "timeout and grace come before the next run: {between:?}");
    }
    assert!(world.letters.sent()[0].headers.iter().any(|(name, value)| name == "onceward-error"
        && String::from_utf8_lossy(value).contains("did not return within 10s")));
}

#[tokio::test(start_paused = true)]
async fn rule_12_after_a_timeout_the_claim_is_given_up_only_once_the_run_has_ended() {
    let world = World::new();
    world.publish("stubborn");
    // It ignores its cancellation, and returns within the grace.
    let worker = world.worker().start(|message| async move {
        if message.attempt() == 1 {
            tokio::time::sleep(10 * SECOND + 900 * MS).await;
            assert!(message.cancellation().is_cancelled());
            return Err(HandlerError::retry("interrupted"));
        }
        Ok(())
    });
    tokio::time::sleep(10 * SECOND + 800 * MS).await;
    assert_eq!(world.state("stubborn").await, KeyState::Pending, "the run has not ended");
    world.empty().await;
    let runs = world.runs();
    assert!(runs[1].started >= runs[0].ended.clone().unwrap().0);
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::Timeouts)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_effect_that_happens_within_the_grace_counts_as_an_effect() {
    let world = World::new();
    world.publish("late");
    let worker = world.worker().start(|message| async move {
        message.cancellation().cancelled().await;
        Ok(())
    });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::Timeouts)), (1, 1));
    assert_eq!((world.runs().len(), world.state("late").await), (1, KeyState::Completed));
}

#[tokio::test(start_paused = true)]
async fn c22_a_poison_message_runs_as_often_as_allowed_and_is_dead_lettered_then_acked() {
    let world = World::new();
    world
        .broker
        .publish(message("poison").header("tenant", "blue").message_id("m-1").origin("orders".into()));
    let worker = world.worker().start(|_| async { Err(HandlerError::retry("no such account")) });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered(), summary.retried()), (0, 1, 2));
    let attempts: Vec<_> = world.runs().iter().map(|run| run.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    let letters = world.letters.sent();
    assert_eq!(letters.len(), 1);
    let header = |name: &str| {
        let (_, value) = letters[0].headers.iter().find(|(own, _)| own == name).expect(name);
        String::from_utf8_lossy(value).into_owned()
    };
    assert_eq!(letters[0].destination, "dead");
    assert_eq!(&letters[0].payload[..], b"poison");
    assert_eq!((header("tenant"), header("onceward-message-id")), ("blue".into(), "m-1".into()));
    assert_eq!(header("onceward-reason"), "attempts-exhausted");
    assert_eq!((header("onceward-attempts"), header("onceward-generation")), ("3".into(), "0".into()));
    assert_eq!(header("onceward-error"), "no such account");
    assert_eq!((header("onceward-scope"), header("onceward-origin")), ("billing".into(), "orders".into()));
    assert_eq!(header("onceward-key"), world.key("poison").to_string());
    assert!(header("onceward-first-at-ms") <= header("onceward-last-at-ms"));
    assert_eq!(world.state("poison").await, KeyState::Dead);
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_is_dead_lettered_after_one_run() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().start(|_| async { Err(HandlerError::permanent("malformed")) });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((world.runs().len(), summary.dead_lettered(), summary.retried()), (1, 1, 0));
    assert!(world.letters.sent()[0].headers.contains(&("onceward-reason".into(), "permanent".into())));
}

#[tokio::test(start_paused = true)]
async fn backoff_grows_and_a_handler_may_ask_for_more() {
    let world = World::new();
    world.publish_all(["grows", "asks"]);
    let worker = world.worker().config(|config| config.retry.max_attempts = 5).start(|message| async move {
        match (id_of(&message).as_str(), message.attempt()) {
            ("grows", 1..=4) => Err(HandlerError::retry("not yet")),
            ("asks", 1) => Err(HandlerError::retry_after(7 * SECOND, "busy")),
            _ => Ok(()),
        }
    });
    world.empty().await;
    let pauses = |id| {
        let runs = world.runs_of(id);
        runs.iter().zip(&runs[1..]).map(|(a, b)| b.started - a.started).collect::<Vec<_>>()
    };
    let grown = pauses("grows");
    for (pause, least) in grown.iter().zip([50, 100, 200, 400]) {
        assert!(*pause >= least * MS && *pause < 2 * least * MS, "{grown:?}");
    }
    assert!(pauses("asks")[0] >= 7 * SECOND);
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn rule_13_a_handler_cannot_ask_for_a_pause_that_no_clock_can_hold() {
    let world = World::new();
    world.publish_all(["forever", "a"]);
    let worker = world.worker().start(|message| async move {
        match id_of(&message).as_str() {
            "forever" => Err(HandlerError::retry_after(Duration::MAX, "never mind")),
            _ => Ok(()),
        }
    });
    eventually("the other message is handled", || world.broker.acked() == 1).await;
    world.publish("b");
    eventually("the worker lives", || world.broker.acked() == 2).await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_retry_takes_no_handler_slot_and_burns_no_attempt() {
    let world = World::new();
    world.publish_all(["slow-to-heal", "a", "b", "c"]);
    let worker = world.worker().config(|config| config.concurrency = 1).start(|message| async move {
        match (id_of(&message).as_str(), message.attempt()) {
            ("slow-to-heal", 1) => Err(HandlerError::retry_after(60 * SECOND, "busy")),
            _ => Ok(()),
        }
    });
    tokio::time::sleep(SECOND).await;
    assert_eq!(world.broker.acked(), 3);
    assert_eq!(world.record("slow-to-heal").await.unwrap().attempts, 1);
    world.empty().await;
    assert_eq!(world.runs_of("slow-to-heal").len(), 2);
    let summary = worker.end().await;
    assert_eq!(summary.handled(), 4);
}

#[tokio::test(start_paused = true)]
async fn rule_4_a_failure_whose_reply_was_lost_is_written_once() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker();
    worker.store.next(Operation::Fail, Fault::ReplyLost);
    worker.store.next(Operation::Fail, Fault::Refused);
    let worker = worker.start(|message| async move {
        if message.attempt() == 1 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    });
    world.empty().await;
    let attempts: Vec<_> = world.runs().iter().map(|run| run.attempt).collect();
    assert_eq!(attempts, [1, 2], "the lost reply did not count twice");
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn on_exhausted_park_keeps_the_message_and_tries_it_at_the_longest_delay() {
    let world = World::new();
    world.publish_all(["a", "bad"]);
    let healed = Arc::new(AtomicU32::new(0));
    let body = Arc::clone(&healed);
    let worker = world.worker().config(|config| config.policies.on_exhausted = OnExhausted::Park).start(
        move |message| {
            let healed = body.load(Ordering::Relaxed) > 0;
            async move {
                if id_of(&message) == "bad" && !healed {
                    return Err(HandlerError::permanent("broken"));
                }
                Ok(())
            }
        },
    );
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((world.broker.acked(), world.broker.depth()), (1, 1));
    let runs = world.runs_of("bad").len();
    assert!((10..=13).contains(&runs), "one run each 5 s, not {runs}");
    assert_eq!(worker.count(Counter::Parked), 1);
    healed.store(1, Ordering::Relaxed);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (2, 0));
    assert!(world.letters.sent().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_finite_source_ends_though_a_policy_keeps_a_message_in_it_and_the_others_are_acked_first() {
    let world = World::with(Habits { finite: true, ..Habits::default() });
    world.publish_all(["bad", "slow"]);
    let worker = world.worker().config(|config| config.policies.on_exhausted = OnExhausted::Park);
    // The completion of the other message is under way when nothing but the parked one is left to run.
    worker.store.next(Operation::Complete, Fault::Late(500 * MS));
    let worker = worker.start(|message| async move {
        if id_of(&message) == "bad" { Err(HandlerError::permanent("broken")) } else { Ok(()) }
    });
    let summary = worker.ended().await;
    assert_eq!((summary.handled(), summary.parked(), summary.given_back()), (1, 1, 1));
    assert_eq!((world.broker.acked(), world.broker.depth()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_delay_without_end_is_shortened_to_what_a_clock_can_add() {
    let world = World::with(Habits { delayed_retry: true, ..Habits::default() });
    world.publish_all(["a", "b"]);
    let worker = world.worker().start(|message| async move {
        if id_of(&message) == "a" { Err(HandlerError::retry_after(Duration::MAX, "never")) } else { Ok(()) }
    });
    eventually("both are settled", || world.broker.unsettled() == 0 && world.broker.acked() == 1).await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back()), (1, 1));
}
