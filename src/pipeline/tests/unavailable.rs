//! Handlers that find what they need unavailable: no attempt is used, and a breaker pauses all runs but a probe.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering as Atomic};

use super::*;
use crate::pipeline::config::{OnMissingKey, Ordering};
use crate::telemetry::HandlerState;
use crate::testing::{Fault, Operation};

fn away() -> HandlerError {
    HandlerError::unavailable("connection refused")
}

/// The dependency of a test's handlers, and how often it was called.
#[derive(Clone, Default)]
pub(super) struct Service {
    down: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Service {
    pub(super) fn is_down() -> Self {
        let service = Self::default();
        service.set(true);
        service
    }

    pub(super) fn set(&self, down: bool) {
        self.down.store(down, Atomic::SeqCst);
    }

    fn asked(&self) -> usize {
        self.asked.load(Atomic::SeqCst)
    }

    pub(super) fn ask(&self) -> Handled {
        self.asked.fetch_add(1, Atomic::SeqCst);
        if self.down.load(Atomic::SeqCst) { Err(away()) } else { Ok(()) }
    }

    /// A handler that refuses what is poison before it asks.
    async fn handle(self, message: Message) -> Handled {
        if id_of(&message).starts_with("poison") {
            return Err(HandlerError::retry("cannot be understood"));
        }
        self.ask()
    }
}

pub(super) fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

#[tokio::test(start_paused = true)]
async fn two_minutes_without_the_handler_use_no_attempt_and_the_backlog_is_done_within_seconds() {
    let world = World::with(Habits { batch: 100, ..Habits::default() });
    let service = Service::is_down();
    let all = ids("m", 1_000);
    world.publish_all(all.iter().map(String::as_str));
    let handler = service.clone();
    let worker = world
        .worker()
        .config(|config| (config.concurrency, config.max_in_flight) = (16, 200))
        .start(move |message| handler.clone().handle(message));
    tokio::time::sleep(10 * SECOND).await;
    world.publish("poison");
    let (deliveries, asked) = (world.broker.deliveries(), service.asked());
    tokio::time::sleep(110 * SECOND).await;
    let HandlerState::Down(reason) = worker.counters.handler_state() else { panic!("it is reported") };
    assert_eq!((reason.failed_messages, reason.to_string()), (None, "connection refused".to_owned()));
    assert!(world.broker.deliveries() - deliveries <= 100, "intake pauses");
    let probes = service.asked() - asked;
    assert!((15..=60).contains(&probes), "{probes} runs in 110 s");
    assert_eq!((world.broker.acked(), world.letters.sent().len()), (0, 0));
    service.set(false);
    let up = Instant::now();
    eventually("the backlog is done", || world.broker.acked() >= 1_000).await;
    assert!(up.elapsed() <= 10 * SECOND, "{:?}", up.elapsed());
    assert_eq!(worker.counters.handler_state(), HandlerState::Up);
    world.empty().await;
    let summary = worker.end().await;
    let count = |counter| summary.counters().get(counter);
    assert_eq!((summary.handled(), summary.dead_lettered()), (1_000, 1));
    assert_eq!((count(Counter::RunsFailed), count(Counter::LeasesLost)), (3, 0), "only the poison failed");
    assert!(count(Counter::Unavailable) >= 10);
    let good = world.runs().into_iter().filter(|run| !run.id.starts_with("poison"));
    assert!(good.map(|run| run.attempt).all(|attempt| attempt == 1));
}

#[tokio::test(start_paused = true)]
async fn a_poison_message_opens_nothing_and_delays_nobody() {
    for verdict in [HandlerError::retry("no"), away()] {
        let (text, verdict) = (verdict.text().to_owned(), verdict.verdict());
        let world = World::with(Habits { batch: 50, ..Habits::default() });
        let all = ids("m", 500);
        world.publish("poison");
        world.publish_all(all.iter().map(String::as_str));
        let worker = world
            .worker()
            .config(|config| (config.concurrency, config.retry.max_attempts) = (10, 1_000))
            .start(move |message| {
                let error = HandlerError::new(verdict, text.clone());
                async move {
                    tokio::time::sleep(20 * MS).await;
                    if id_of(&message) == "poison" { Err(error) } else { Ok(()) }
                }
            });
        let began = Instant::now();
        eventually("the others are done", || world.broker.acked() == 500).await;
        // 50 rounds of ten, each of 20 ms.
        assert!(began.elapsed() <= 1250 * MS, "{verdict:?}: {:?}", began.elapsed());
        let _ = worker.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_messages_that_fail_in_a_row_are_taken_for_a_fault_of_the_handler() {
    let world = World::new();
    let all = ids("m", 500);
    world.publish_all(all.iter().map(String::as_str));
    let wrong_path = Arc::new(AtomicBool::new(true));
    let wrong = Arc::clone(&wrong_path);
    let worker = world.worker().config(|config| config.concurrency = 4).start(move |_| {
        let wrong = wrong.load(Atomic::SeqCst);
        async move {
            tokio::time::sleep(10 * MS).await;
            if wrong { Err(HandlerError::permanent("404")) } else { Ok(()) }
        }
    });
    tokio::time::sleep(20 * SECOND).await;
    let letters = world.letters.sent().len();
    assert!((20..=40).contains(&letters), "{letters} of 500 are lost to a wrong path");
    let HandlerState::Down(reason) = worker.counters.handler_state() else { panic!("it is reported") };
    let reason = reason.to_string();
    assert!(reason.contains("20 different messages failed in a row") && reason.contains("404"), "{reason}");
    wrong_path.store(false, Atomic::SeqCst);
    let up = Instant::now();
    world.empty().await;
    assert!(up.elapsed() <= 10 * SECOND, "{:?}", up.elapsed());
    let summary = worker.end().await;
    assert_eq!(summary.handled() + summary.dead_lettered(), 500);
}

#[tokio::test(start_paused = true)]
async fn a_source_of_nothing_but_poison_is_worked_off_all_the_same() {
    let world = World::with(Habits { batch: 10, ..Habits::default() });
    let all = ids("m", 60);
    world.publish_all(all.iter().map(String::as_str));
    let worker = world.worker().start(|_| async { Err(HandlerError::permanent("never")) });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.dead_lettered(), world.runs().len()), (60, 60));
}

#[tokio::test(start_paused = true)]
async fn without_a_breaker_an_unavailable_run_still_uses_no_attempt() {
    let world = World::new();
    let service = Service::is_down();
    world.publish_all(["a", "b", "c"]);
    let handler = service.clone();
    let worker = world
        .worker()
        .config(|config| config.breaker.enabled = false)
        .start(move |message| handler.clone().handle(message));
    tokio::time::sleep(60 * SECOND).await;
    assert!((30..=120).contains(&service.asked()), "{} runs in 60 s", service.asked());
    service.set(false);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_run_keeps_its_place_in_its_lane() {
    let world = World::new();
    let service = Service::is_down();
    for number in 0..5 {
        world.broker.publish(message(&number.to_string()).order_key("one"));
    }
    let handler = service.clone();
    let worker = world
        .worker()
        .config(|config| config.ordering = Ordering::BrokerKey)
        .start(move |message| handler.clone().handle(message));
    tokio::time::sleep(30 * SECOND).await;
    assert!(matches!(worker.counters.handler_state(), HandlerState::Down(_)), "one lane is reported as well");
    service.set(false);
    world.empty().await;
    let ended: Vec<String> = world
        .runs()
        .into_iter()
        .filter(|run| run.ended.as_ref().is_some_and(|(_, result)| result.is_ok()))
        .map(|run| run.id)
        .collect();
    assert_eq!(ended, ["0", "1", "2", "3", "4"]);
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_suspect_that_finds_the_handler_unavailable_is_charged_no_lapse() {
    let world = World::new();
    let _ = world.claim_elsewhere("a", LEASE).await;
    tokio::time::sleep(LEASE).await;
    world.publish("a");
    let service = Service::is_down();
    let handler = service.clone();
    let worker = world.worker();
    for _ in 0..3 {
        worker.store.next(Operation::Release, Fault::Refused);
    }
    let worker = worker.start(move |message| handler.clone().handle(message));
    tokio::time::sleep(30 * SECOND).await;
    let record = world.record("a").await.unwrap();
    assert_eq!((record.attempts, record.lost), (0, 1));
    worker.die();
    tokio::time::sleep(2 * LEASE).await;
    service.set(false);
    let handler = service.clone();
    let worker = world.worker().start(move |message| handler.clone().handle(message));
    world.empty().await;
    let last = world.runs_of("a").pop().unwrap();
    assert_eq!(last.attempt, 1, "the mark of a run that found nothing there was taken back");
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_unprotected_run_that_finds_the_handler_unavailable_uses_no_attempt_either() {
    let world = World::new();
    world.broker.publish(Message::builder("one"));
    let service = Service::is_down();
    let handler = service.clone();
    let worker = world
        .worker()
        .config(|config| config.policies.on_missing_key = OnMissingKey::Process)
        .start(move |message| handler.clone().handle(message));
    tokio::time::sleep(60 * SECOND).await;
    service.set(false);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 0));
    assert!(world.runs().iter().all(|run| run.attempt == 1));
}

#[tokio::test(start_paused = true)]
async fn a_drain_while_the_handler_is_unavailable_gives_everything_back() {
    let world = World::new();
    let all = ids("m", 50);
    world.publish_all(all.iter().map(String::as_str));
    let service = Service::is_down();
    let worker = world.worker().start(move |message| service.clone().handle(message));
    tokio::time::sleep(30 * SECOND).await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back(), world.broker.depth()), (0, 50, 50));
    for id in &all {
        let record = world.record(id).await;
        assert!(
            record.is_none_or(|record| record.lease_left.is_none_or(|left| left.is_zero())),
            "{id} is free"
        );
    }
}

/// Little of the lease is left, and the renewal before the start takes so long that the heartbeat stops the run first.
#[tokio::test(start_paused = true)]
async fn a_run_that_was_asked_to_stop_before_it_began_does_not_begin() {
    let world = World::new();
    world.publish("a");
    let fired = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&fired);
    let worker = world.worker().config(|config| config.store_timeout = 10 * SECOND);
    worker.store.next(Operation::Claim, Fault::ReplyLate(LEASE - 300 * MS));
    worker.store.next(Operation::Renew, Fault::ReplyLate(SECOND));
    let worker = worker.start(move |message| {
        seen.fetch_add(usize::from(message.cancellation().is_cancelled()), Atomic::SeqCst);
        async { Ok(()) }
    });
    world.empty().await;
    assert_eq!((fired.load(Atomic::SeqCst), world.runs().len()), (0, 1));
    assert!(worker.count(Counter::LeasesLost) >= 1, "the heartbeat stopped the first claim");
    let _ = worker.end().await;
}
