//! Handlers that find what they need unavailable and do not know whether their effect has happened; and answers that ask for
//! a wait.

use super::unavailable::{Service, ids};
use super::*;

/// A gateway that gives up while what is behind it may go on.
fn gave_up() -> HandlerError {
    HandlerError::unavailable("504 Gateway Timeout").outcome_unknown()
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_outcome_stays_unknown_uses_its_attempts_while_others_succeed() {
    for breaker in [true, false] {
        let world = World::with(Habits { batch: 10, ..Habits::default() });
        world.publish("slow");
        let worker =
            world.worker().config(|config| config.breaker.enabled = breaker).start(|message| async move {
                tokio::time::sleep(100 * MS).await;
                if id_of(&message) == "slow" { Err(gave_up()) } else { Ok(()) }
            });
        for number in 0..120 {
            world.publish(&format!("m{number}"));
            tokio::time::sleep(SECOND).await;
        }
        let runs = world.runs_of("slow");
        assert!((4..=5).contains(&runs.len()), "{} effects of one message", runs.len());
        assert_eq!((world.broker.acked(), world.broker.depth()), (121, 0));
        let letter = world.letters.sent().remove(0);
        assert!(letter.headers.contains(&("onceward-reason".into(), "attempts-exhausted".into())));
        let summary = worker.end().await;
        let count = |counter| summary.counters().get(counter);
        assert_eq!((summary.handled(), summary.dead_lettered()), (120, 1));
        assert_eq!((count(Counter::RunsFailed), count(Counter::Unavailable)), (3, runs.len() as u64 - 3));
        assert_eq!(count(Counter::SuspectedDoubleEffects), runs.len() as u64 - 1, "each run after the first");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_alone_in_doubt_is_charged_from_when_another_shows_that_the_handler_works() {
    let world = World::new();
    world.publish("slow");
    let worker = world
        .worker()
        .start(|message| async move { if id_of(&message) == "slow" { Err(gave_up()) } else { Ok(()) } });
    tokio::time::sleep(60 * SECOND).await;
    let alone = world.runs_of("slow");
    assert!(alone.len() >= 10 && alone.iter().all(|run| run.attempt == 1), "nothing tells it from an outage");
    world.publish("ok");
    world.empty().await;
    assert!(world.runs_of("slow").len() <= alone.len() + 4);
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn outages_that_leave_outcomes_unknown_use_no_attempt() {
    let world = World::with(Habits { batch: 100, ..Habits::default() });
    let service = Service::default();
    let all = ids("m", 400);
    world.publish_all(all.iter().map(String::as_str));
    let handler = service.clone();
    let worker = world.worker().config(|config| config.concurrency = 16).start(move |_| {
        let handler = handler.clone();
        async move {
            tokio::time::sleep(100 * MS).await;
            handler.ask().map_err(|_| gave_up())
        }
    });
    for _ in 0..2 {
        tokio::time::sleep(SECOND).await;
        service.set(true);
        tokio::time::sleep(120 * SECOND).await;
        service.set(false);
    }
    world.empty().await;
    assert_eq!(world.letters.sent().len(), 0);
    assert!(world.runs().iter().all(|run| run.attempt <= 2), "at most the run that met the second outage");
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (400, 0));
}

/// `a` is in doubt in the first outage and has no run before the second one.
#[tokio::test(start_paused = true)]
async fn a_message_in_doubt_since_an_earlier_outage_is_not_charged_as_a_probe_of_the_next_one() {
    let world = World::new();
    let service = Service::is_down();
    let handler = service.clone();
    let worker = world.worker().start(move |message| {
        let handler = handler.clone();
        async move {
            let patience = if id_of(&message) == "a" { 30 * SECOND } else { Duration::ZERO };
            handler.ask().map_err(|_| gave_up().not_before(patience))
        }
    });
    world.publish_all(["a", "b"]);
    tokio::time::sleep(SECOND).await;
    service.set(false);
    tokio::time::sleep(19 * SECOND).await;
    assert_eq!(world.broker.acked(), 1, "the handler works for b");
    service.set(true);
    world.publish_all(["c", "d"]);
    tokio::time::sleep(600 * SECOND).await;
    service.set(false);
    world.empty().await;
    assert!(world.runs_of("a").len() >= 5, "it was a probe again and again");
    assert!(world.runs().iter().all(|run| run.attempt == 1));
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_waits_for_as_long_as_its_own_answer_has_asked_for_and_others_do_not() {
    let world = World::with(Habits { batch: 10, ..Habits::default() });
    let asked = |id: &str| match id {
        "away-1" | "away-2" => HandlerError::unavailable("quota").not_before(1800 * SECOND),
        "retry" => HandlerError::retry("busy").not_before(600 * SECOND),
        _ => HandlerError::unavailable("forever").not_before(Duration::MAX),
    };
    let worker = world.worker().start(move |message| async move {
        let id = id_of(&message);
        if id.starts_with("ok") { Ok(()) } else { Err(asked(&id)) }
    });
    world.publish_all(["away-1", "away-2", "retry", "forever"]);
    tokio::time::sleep(SECOND).await;
    let began = Instant::now();
    world.publish_all(["ok-1", "ok-2"]);
    eventually("others go on", || world.broker.acked() == 2).await;
    assert!(began.elapsed() <= 61 * SECOND, "one tenant's quota stops nobody else: {:?}", began.elapsed());
    tokio::time::sleep(3000 * SECOND).await;
    let second = |id: &str| {
        let runs = world.runs_of(id);
        runs.get(1).map(|second| second.started - runs[0].started)
    };
    assert!(second("away-1").is_some_and(|after| after >= 1800 * SECOND), "{:?}", second("away-1"));
    assert!(second("away-2").is_some_and(|after| after >= 1800 * SECOND), "{:?}", second("away-2"));
    assert!(second("retry").is_some_and(|after| after >= 600 * SECOND), "{:?}", second("retry"));
    assert_eq!(world.runs_of("forever").len(), 1);
    let _ = worker.end().await;
}
