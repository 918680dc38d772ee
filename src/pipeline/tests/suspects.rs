//! Checks keys whose process died: they run one by one, each after a write that marks it as started, until a killer is
//! dead-lettered.

use super::*;
use crate::store::RenewRequest;
use crate::testing::{Fault, Operation};

/// Plays a process that claims `id`, starts it as a suspect, and dies.
async fn killed_by(world: &World, id: &str) {
    let lease = world.claim_elsewhere(id, LEASE).await;
    let started = RenewRequest { lease, lease_for: LEASE, started: true };
    world.store.renew(&world.scope, &[started]).await.pop().unwrap().unwrap();
    tokio::time::sleep(LEASE).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_process_died_runs_after_a_fenced_write_that_says_so() {
    let world = World::new();
    let _ = world.claim_elsewhere("a", LEASE).await;
    tokio::time::sleep(LEASE).await;
    world.publish_all(["a", "b"]);
    let worker = world.worker().start_ok();
    worker.store.record();
    let store = worker.store.clone();
    world.empty().await;
    let _ = worker.end().await;
    let calls = store.recorded();
    let started: Vec<_> = calls.iter().filter(|call| call.operation == Operation::Renew).collect();
    assert_eq!(started.len(), 1);
    assert_eq!(started[0].keys, [world.key("a")]);
    assert_eq!(world.runs_of("a")[0].attempt, 1, "the lapse before the start used up no attempt");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_kills_its_process_each_time_ends_in_the_dead_letters_unhandled() {
    let world = World::new();
    let _ = world.claim_elsewhere("killer", LEASE).await;
    tokio::time::sleep(LEASE).await;
    for _ in 0..3 {
        killed_by(&world, "killer").await;
    }
    world.publish("killer");
    let worker = world.worker().start_ok();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (0, 1));
    let letter = world.letters.sent().remove(0);
    assert!(letter.headers.contains(&("onceward-reason".into(), "process-lost".into())));
    assert!(letter.headers.contains(&("onceward-lost".into(), "4".into())), "{:?}", letter.headers);
}

#[tokio::test(start_paused = true)]
async fn a_process_killer_is_found_and_its_neighbours_keep_all_their_attempts() {
    let world = World::new();
    let ids: Vec<String> = (0..10).map(|number| format!("n{number}")).collect();
    world.publish_all(ids[..5].iter().map(String::as_str));
    world.publish("killer");
    world.publish_all(ids[5..].iter().map(String::as_str));
    let mut deaths = 0;
    // A handler that signals that it is about to kill its process; the test then does.
    let about_to_die = Arc::new(tokio::sync::Notify::new());
    while world.broker.depth() > 0 {
        let dying = Arc::clone(&about_to_die);
        let worker = world.worker().start(move |message| {
            let dying = Arc::clone(&dying);
            async move {
                if id_of(&message) == "killer" {
                    dying.notify_one();
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(100 * MS).await;
                Ok(())
            }
        });
        tokio::select! {
            () = world.empty() => {
                let _ = worker.end().await;
            }
            () = about_to_die.notified() => {
                worker.die();
                deaths += 1;
            }
        }
        assert!(deaths < 10, "the killer is never found");
    }
    // Once unsuspected, then three counted attempts.
    assert_eq!(deaths, 4);
    let letters = world.letters.sent();
    assert_eq!((letters.len(), &letters[0].payload[..]), (1, &b"killer"[..]));
    for id in &ids {
        let last = world.runs_of(id).pop().unwrap();
        assert_eq!((last.attempt, last.ended.is_some()), (1, true), "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn suspects_run_one_at_a_time_beside_the_others() {
    let world = World::new();
    for id in ["s1", "s2", "s3"] {
        let _ = world.claim_elsewhere(id, LEASE).await;
    }
    tokio::time::sleep(LEASE).await;
    world.publish_all(["s1", "s2", "s3", "x", "y"]);
    let worker = world.worker().start(|_| async {
        tokio::time::sleep(3 * SECOND).await;
        Ok(())
    });
    world.empty().await;
    let mut suspects: Vec<Run> = world.runs().into_iter().filter(|run| run.id.starts_with('s')).collect();
    suspects.sort_by_key(|run| run.started);
    for pair in suspects.windows(2) {
        assert!(pair[1].started >= pair[0].ended.clone().unwrap().0, "they overlap");
    }
    for id in ["x", "y"] {
        assert_eq!(world.runs_of(id)[0].started, suspects[0].started, "{id} waited for a suspect");
    }
    let summary = worker.end().await;
    assert_eq!((summary.handled(), world.runs().len()), (5, 5), "waiting suspects kept their leases");
}

/// A killer that ran while its predecessor's completion was still on its way would have it blamed as well.
#[tokio::test(start_paused = true)]
async fn a_suspect_waits_until_the_completion_of_the_one_before_it_is_written() {
    let world = World::new();
    for id in ["s1", "s2"] {
        let _ = world.claim_elsewhere(id, LEASE).await;
    }
    tokio::time::sleep(LEASE).await;
    world.publish_all(["s1", "s2"]);
    let worker = world.worker();
    worker.store.next(Operation::Complete, Fault::Refused);
    worker.store.record();
    let worker = worker.start_ok();
    world.empty().await;
    let calls = worker.store.recorded();
    let story: Vec<_> = calls
        .iter()
        .filter(|call| {
            call.fault.is_none() && [Operation::Renew, Operation::Complete].contains(&call.operation)
        })
        .map(|call| call.operation)
        .collect();
    assert_eq!(story, [Operation::Renew, Operation::Complete, Operation::Renew, Operation::Complete]);
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_suspect_whose_mark_cannot_be_written_does_not_run_and_uses_up_no_attempt() {
    let world = World::new();
    let _ = world.claim_elsewhere("a", LEASE).await;
    tokio::time::sleep(LEASE).await;
    world.publish("a");
    let worker = world.worker();
    for _ in 0..4 {
        worker.store.next(Operation::Renew, Fault::Refused);
        worker.store.next(Operation::Renew, Fault::ReplyLost);
    }
    let worker = worker.start_ok();
    world.empty().await;
    let record = world.record("a").await.unwrap();
    assert_eq!((record.attempts, world.runs()[0].attempt), (0, 1));
    let summary = worker.end().await;
    assert_eq!((summary.handled(), world.runs().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_outage_between_the_mark_and_the_run_uses_up_no_attempt_however_often_it_comes() {
    let world = World::new();
    let _ = world.claim_elsewhere("a", LEASE).await;
    tokio::time::sleep(LEASE).await;
    world.publish("a");
    let worker = world.worker();
    // The mark is written and its reply lost, and the release that follows does not get through.
    for _ in 0..5 {
        worker.store.next(Operation::Renew, Fault::ReplyLost);
        worker.store.next(Operation::Release, Fault::Refused);
    }
    let worker = worker.start_ok();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 0));
    assert_eq!(world.runs()[0].attempt, 1);
}

/// A worker that runs the suspects `ids` and 640 others, each for a second; how long the others took, and all together.
async fn beside_suspects(suspects: usize, others: usize, concurrency: usize) -> (Duration, Duration, World) {
    let world = World::with(Habits { batch: 500, ..Habits::default() });
    let ids: Vec<String> = (0..suspects).map(|number| format!("s{number}")).collect();
    for id in &ids {
        let _ = world.claim_elsewhere(id, LEASE).await;
    }
    tokio::time::sleep(LEASE).await;
    world.publish_all(ids.iter().map(String::as_str));
    (0..others).for_each(|number| world.publish(&format!("o{number}")));
    let worker = world
        .worker()
        .config(|config| {
            config.concurrency = concurrency;
            config.max_in_flight = 4_096;
        })
        .start(|_| async {
            tokio::time::sleep(SECOND).await;
            Ok(())
        });
    let began = Instant::now();
    let done = || world.runs().iter().filter(|run| run.id.starts_with('o') && run.ended.is_some()).count();
    eventually("the others are done", || done() == others).await;
    let others_took = began.elapsed();
    world.empty().await;
    let took = began.elapsed();
    let summary = worker.end().await;
    assert_eq!(world.runs().len(), suspects + others, "each ran once");
    assert_eq!(summary.counters().get(Counter::Takeovers), suspects as u64);
    (others_took, took, world)
}

#[tokio::test(start_paused = true)]
async fn a_crash_with_a_thousand_claims_costs_no_more_than_twice_their_normal_time() {
    let (_, took, _) = beside_suspects(1_000, 0, 1_000).await;
    assert!(took <= 2 * SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn suspects_wait_outside_the_slots_and_others_go_on_at_full_speed() {
    // 64 slots: eleven seconds for all of them, ten for the others alone.
    let (others, took, _) = beside_suspects(64, 640, 64).await;
    assert!(others <= 12 * SECOND && took <= 13 * SECOND, "{others:?}, {took:?} in all");
    // Few suspects run one after the other, in one slot.
    let (others, took, _) = beside_suspects(12, 640, 64).await;
    assert!(others <= 12 * SECOND && took <= 14 * SECOND, "{others:?}, {took:?} in all");
}

/// However many were in flight with it, a killer is found, and no neighbour is charged.
#[tokio::test(start_paused = true)]
async fn a_process_killer_among_a_hundred_is_found_and_its_neighbours_are_blameless() {
    let world = World::new();
    let ids: Vec<String> = (0..100).map(|number| format!("n{number}")).collect();
    world.publish_all(ids[..50].iter().map(String::as_str));
    world.publish("killer");
    world.publish_all(ids[50..].iter().map(String::as_str));
    let mut deaths = 0;
    let about_to_die = Arc::new(tokio::sync::Notify::new());
    while world.broker.depth() > 0 {
        let dying = Arc::clone(&about_to_die);
        let worker = world.worker().config(|config| config.concurrency = 128).start(move |message| {
            let dying = Arc::clone(&dying);
            async move {
                if id_of(&message) == "killer" {
                    dying.notify_one();
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(100 * MS).await;
                Ok(())
            }
        });
        tokio::select! {
            () = world.empty() => {
                let _ = worker.end().await;
            }
            () = about_to_die.notified() => {
                worker.die();
                deaths += 1;
            }
        }
        assert!(deaths < 20, "the killer is never found");
    }
    // Once unsuspected, a few times among ever fewer, then three counted attempts.
    assert!(deaths <= 10, "{deaths} deaths");
    let letters = world.letters.sent();
    assert_eq!((letters.len(), &letters[0].payload[..]), (1, &b"killer"[..]));
    for id in &ids {
        let last = world.runs_of(id).pop().unwrap();
        assert_eq!((last.attempt, last.ended.is_some()), (1, true), "{id}");
    }
}
