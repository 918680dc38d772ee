//! Everything has a limit: messages, bytes, settlements under way, what one bad message may cost the others.

mod ahead;
mod paces;

use super::*;
use crate::testing::{Fault, Operation};

/// Samples the gauge of a worker for as long as the broker holds something; answers the largest values.
async fn largest(world: &World, worker: &Worker) -> (u64, u64) {
    let mut largest = (0, 0);
    while world.broker.depth() > 0 {
        largest.0 = largest.0.max(worker.counters.in_flight());
        largest.1 = largest.1.max(worker.counters.in_flight_bytes());
        tokio::time::sleep(MS).await;
    }
    largest
}

async fn slow(_: Message) -> Handled {
    tokio::time::sleep(50 * MS).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn rule_13_messages_in_flight_stay_below_the_limit_and_one_batch() {
    let world = World::with(Habits { batch: 8, ..Habits::default() });
    let ids: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    world.publish_all(ids.iter().map(String::as_str));
    let worker =
        world.worker().config(|config| (config.concurrency, config.max_in_flight) = (10, 40)).start(slow);
    let (messages, _) = largest(&world, &worker).await;
    assert!((33..=47).contains(&messages), "{messages} in flight with a limit of 40 and batches of 8");
    let summary = worker.end().await;
    assert_eq!(summary.handled(), 500);
}

#[tokio::test(start_paused = true)]
async fn c38_bytes_in_flight_stay_below_the_limit_and_one_batch() {
    let world = World::with(Habits { batch: 1, ..Habits::default() });
    for number in 0..100 {
        world.broker.publish(Message::builder(vec![7; 1 << 20]).header("id", number.to_string()));
    }
    let worker = world.worker().config(|config| config.max_in_flight_bytes = 10 << 20).start(slow);
    let (messages, bytes) = largest(&world, &worker).await;
    assert!(bytes > 8 << 20 && bytes <= 11 << 20, "{bytes} bytes in {messages} messages");
    let summary = worker.end().await;
    assert_eq!(summary.handled(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_message_larger_than_the_limit_is_taken_alone() {
    let world = World::with(Habits { batch: 1, ..Habits::default() });
    world.publish("small");
    world.broker.publish(Message::builder(vec![7; 1 << 20]).header("id", "huge"));
    world.publish("after");
    let worker = world.worker().config(|config| config.max_in_flight_bytes = 100).start(slow);
    world.empty().await;
    assert_eq!(world.ids(), ["small", "huge", "after"]);
    let summary = worker.end().await;
    assert_eq!(summary.handled(), 3);
}

#[test]
fn rule_13_the_limit_holds_where_intake_and_dispatcher_run_on_threads_of_their_own() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
    runtime.block_on(async {
        let world = World::with(Habits { batch: 8, ..Habits::default() });
        let ids: Vec<String> = (0..20_000).map(|number| number.to_string()).collect();
        world.publish_all(ids.iter().map(String::as_str));
        let most = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (seen, broker) = (Arc::clone(&most), world.broker.clone());
        let worker = world
            .worker()
            .config(|config| (config.concurrency, config.max_in_flight) = (10, 40))
            .start(move |_| {
                seen.fetch_max(broker.unsettled(), std::sync::atomic::Ordering::Relaxed);
                async { Ok(()) }
            });
        while world.broker.depth() > 0 {
            tokio::time::sleep(MS).await;
        }
        let most = most.load(std::sync::atomic::Ordering::Relaxed);
        assert!(most <= 47, "{most} were out at once, with a limit of 40 and batches of 8");
        let _ = worker.end().await;
    });
}

#[tokio::test(start_paused = true)]
async fn no_more_handlers_run_at_once_than_configured() {
    let world = World::new();
    let ids: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    world.publish_all(ids.iter().map(String::as_str));
    let worker = world.worker().config(|config| config.concurrency = 7).start(slow);
    world.empty().await;
    let runs = world.runs();
    let at_once = runs
        .iter()
        .map(|run| {
            runs.iter()
                .filter(|other| other.started <= run.started && other.ended.clone().unwrap().0 > run.started)
                .count()
        })
        .max();
    assert_eq!(at_once, Some(7));
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn rule_13_settlements_that_do_not_get_through_close_the_intake() {
    let world = World::with(Habits { batch: 8, ..Habits::default() });
    let ids: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    world.publish_all(ids.iter().map(String::as_str));
    let worker = world.worker().config(|config| (config.concurrency, config.max_in_flight) = (10, 40));
    let worker = worker.start_ok();
    (0..100).for_each(|_| worker.broker.next(Operation::Settle, Fault::Hangs));
    tokio::time::sleep(50 * SECOND).await;
    let taken = world.broker.deliveries();
    assert!(taken <= 56, "{taken} taken and none settled, with a limit of 40 and batches of 8");
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!(summary.handled(), 500);
}

#[tokio::test(start_paused = true)]
async fn rule_14_a_settlement_that_fails_each_time_does_not_hold_up_the_others() {
    let world = World::new();
    let worker = world.worker().start_ok();
    worker.broker.fail_item(0);
    world.publish("unlucky");
    tokio::time::sleep(SECOND).await;
    assert_eq!(world.broker.acked(), 0);
    world.publish_all(["a", "b"]);
    tokio::time::sleep(SECOND).await;
    assert_eq!(world.broker.acked(), 2, "they do not wait for the unlucky one");
    let asked = worker.broker.calls(Operation::Settle);
    assert!(asked < 20, "{asked} settle calls");
    tokio::time::sleep(60 * SECOND).await;
    assert!(worker.broker.calls(Operation::Settle) - asked < 45, "it is repeated without haste");
    worker.broker.mend_items();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!(summary.handled(), 3);
    assert!(summary.counters().get(Counter::SettleErrors) > 5);
}

#[tokio::test(start_paused = true)]
async fn rule_14_a_header_bomb_a_huge_key_and_bytes_that_are_no_text_stop_nobody() {
    let world = World::new();
    let mut bomb = message("bomb");
    for number in 0..10_000 {
        bomb = bomb.header(format!("h{number}"), "x");
    }
    world.broker.publish(bomb);
    world.broker.publish(Message::builder("huge").header("id", vec![b'k'; 64 * 1024 + 1]));
    world.broker.publish(Message::builder(vec![0xff, 0xfe]).header("id", vec![0xc3, 0x28, 0x00]));
    world.broker.publish(Message::builder("x").header("id", ""));
    world.publish("a");
    let worker = world.worker().start_ok();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (3, 2));
    assert_eq!(summary.counters().get(Counter::MissingKeys), 2);
}

#[tokio::test(start_paused = true)]
async fn a_message_the_source_calls_unreadable_is_dead_lettered_without_a_run() {
    let world = World::new();
    let defect = crate::message::Defect::Oversize { bytes: 1 << 30, limit: 1 << 20 };
    world.broker.publish(message("big").defect(defect));
    let worker = world.worker().start_ok();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered(), world.runs().len()), (0, 1, 0));
    assert!(world.letters.sent()[0].headers.contains(&("onceward-reason".into(), "defect".into())));
}

#[test]
fn rule_13_durations_that_no_clock_can_hold_are_refused() {
    type Change = fn(&mut PipelineConfig);
    let changes: [(&str, Change); 7] = [
        ("handler_timeout", |config| config.handler_timeout = Duration::MAX),
        ("cancel_grace", |config| config.cancel_grace = Duration::MAX),
        ("drain_timeout", |config| config.drain_timeout = Duration::MAX),
        ("store_timeout", |config| config.store_timeout = Duration::MAX),
        ("publish_timeout", |config| config.publish_timeout = Duration::MAX),
        ("retry.max", |config| config.retry.backoff.max = Duration::MAX),
        ("retry.max", |config| config.retry.backoff.max = Duration::from_secs(366 * 24 * 3600)),
    ];
    for (name, change) in changes {
        let mut config = config();
        change(&mut config);
        let refusal = config.check().unwrap_err().to_string();
        assert!(refusal.contains(name), "{refusal}");
    }
}
