//! Keys that readers of a message may see differently, and keys of large messages.

use super::*;
use crate::pipeline::config::{Mode, OnMissingKey, Ordering};

fn by_json(worker: &mut WorkerBuilder<'_>) {
    worker.keys = vec![KeySource::JsonPointer("/id".into())];
}

/// The same order for a reader that takes the first of two names; then one of each other kind.
const UNCLEAR: [&str; 6] = [
    r#"{"id":"victim","id":"r1"}"#,
    r#"{"id":"victim","id":"r2"}"#,
    r#"{"id":"victim","ID":"r3"}"#,
    r#"{"id":7.0}"#,
    r#"{"id":["victim"]}"#,
    r#"{"id":"victim",}"#,
];

async fn unclear(policy: OnMissingKey, mode: Mode) -> (Vec<Run>, Vec<String>, Summary) {
    let world = World::new();
    UNCLEAR.iter().for_each(|payload| world.broker.publish(Message::builder(*payload)));
    let worker = world.worker().with(by_json).config(|config| {
        config.policies.on_missing_key = policy;
        config.mode = mode;
    });
    let worker = worker.start_ok();
    world.empty().await;
    let summary = worker.end().await;
    let letters = world.letters.sent();
    let errors = letters.iter().filter_map(|letter| {
        let (_, error) = letter.headers.iter().find(|(name, _)| &**name == "onceward-error")?;
        Some(String::from_utf8_lossy(error).into_owned())
    });
    (world.runs(), errors.collect(), summary)
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_key_is_unclear_never_runs_under_a_key() {
    for policy in [OnMissingKey::DeadLetter, OnMissingKey::Hash] {
        let (runs, errors, summary) = unclear(policy, Mode::Enforce).await;
        assert!(runs.is_empty(), "{policy:?}: {runs:?}");
        assert_eq!(summary.dead_lettered(), UNCLEAR.len() as u64, "{policy:?}");
        assert_eq!(
            errors.iter().filter(|error| error.contains("json:/id is ambiguous")).count(),
            5,
            "{errors:?}"
        );
        assert!(!errors.iter().any(|error| error.contains("victim")), "{errors:?}");
    }
    let (runs, _, summary) = unclear(OnMissingKey::Process, Mode::Enforce).await;
    assert_eq!(
        (runs.len(), summary.counters().get(Counter::Unprotected)),
        (UNCLEAR.len(), UNCLEAR.len() as u64)
    );
    let (runs, _, summary) = unclear(OnMissingKey::Reject, Mode::Enforce).await;
    assert_eq!((runs.len(), summary.counters().get(Counter::Rejected)), (0, UNCLEAR.len() as u64));
    let (runs, _, _) = unclear(OnMissingKey::DeadLetter, Mode::Observe).await;
    assert_eq!(runs.len(), UNCLEAR.len());
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_order_key_is_unclear_overtakes_nobody() {
    let world = World::new();
    for (id, payload) in
        [("a", r#"{"lane":1}"#), ("b", r#"{"lane":1,"lane":2}"#), ("c", r#"{"lane":1.0}"#), ("d", "{}")]
    {
        world.broker.publish(Message::builder(payload).header("id", id));
    }
    let order = Ordering::By(KeySource::JsonPointer("/lane".into()));
    let worker = world.worker().config(|config| config.ordering = order).start_ok();
    world.empty().await;
    assert_eq!(world.ids(), ["a", "d"]);
    assert_eq!(worker.end().await.dead_lettered(), 2);
}

/// A JSON object of so many MiB whose members are out of order.
fn large(id: &str, mebibytes: usize) -> String {
    let members: String = (0..mebibytes << 16).rev().map(|n| format!(r#""k{n:07}":{},"#, n % 10)).collect();
    format!(r#"{{{members}"id":"{id}"}}"#)
}

#[tokio::test(start_paused = true)]
async fn the_key_of_a_large_message_is_found_while_others_run_and_its_memory_counts() {
    let world = World::new();
    let payload = large("big", 4);
    let size = payload.len();
    assert!(size > 3 << 20);
    world.broker.publish(Message::builder(payload.clone()).header("id", "big"));
    world.broker.publish(Message::builder(r#"{"id":"small"}"#).header("id", "small"));
    let worker = world.worker().with(by_json);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let counters: Arc<Mutex<Option<Arc<Counters>>>> = Arc::default();
    let (seen_by, asked) = (Arc::clone(&seen), Arc::clone(&counters));
    let worker = worker.start(move |_| {
        let bytes = asked.lock().unwrap().as_ref().map_or(0, |counters| counters.in_flight_bytes());
        seen_by.lock().unwrap().push(bytes as usize);
        async { Ok(()) }
    });
    *counters.lock().unwrap() = Some(Arc::clone(&worker.counters));
    world.empty().await;
    assert_eq!(world.ids(), ["small", "big"], "the small message waited for the key of the large one");
    let seen = seen.lock().unwrap().clone();
    assert!(seen[0] >= 5 * size, "while the key is looked for: {} bytes of {size}", seen[0]);
    assert!((size..2 * size).contains(&seen[1]), "afterwards: {} bytes of {size}", seen[1]);
    world.broker.publish(Message::builder(payload).header("id", "big"));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (2, 1));
}

async fn large_in_order(ordering: Ordering) {
    let world = World::new();
    let payload = large("1", 1).replace("\"id\"", "\"lane\":1,\"id\"");
    for (id, payload) in [
        ("1", payload),
        ("2", r#"{"lane":1}"#.to_owned()),
        ("3", large("1", 1).replace("\"id\"", "\"lane\":1,\"id\"")),
    ] {
        world.broker.publish(Message::builder(payload).header("id", id).order_key("lane"));
    }
    let worker = world.worker().config(|config| config.ordering = ordering).start_ok();
    world.empty().await;
    assert_eq!(world.ids(), ["1", "2", "3"]);
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn large_messages_keep_their_place_in_their_lane() {
    large_in_order(Ordering::BrokerKey).await;
    large_in_order(Ordering::Partition).await;
    large_in_order(Ordering::By(KeySource::JsonPointer("/lane".into()))).await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_gives_large_messages_back_whose_keys_are_not_found_yet() {
    let world = World::new();
    for id in ["a", "b", "c", "d"] {
        world.broker.publish(Message::builder(large(id, 2)).header("id", id));
    }
    let worker = world.worker().with(by_json).start_ok();
    // Without the clock, which stands still while a thread reads.
    while worker.count(Counter::Received) < 4 {
        tokio::task::yield_now().await;
    }
    let summary = worker.end().await;
    assert!(summary.given_back() > 0, "all keys were found before the shutdown");
    assert_eq!(summary.handled() + summary.given_back(), 4);
    assert_eq!(world.broker.depth() as u64, summary.given_back());
}

// With the real clock: the virtual one stands still while a thread reads.
#[tokio::test]
async fn no_more_large_messages_are_read_at_once_than_memory_allows() {
    let world = World::new();
    for id in ["a", "b", "c"] {
        world.broker.publish(Message::builder(large(id, 1)).header("id", id));
    }
    let size = large("a", 1).len();
    let worker = world.worker().with(by_json).config(|config| config.max_in_flight_bytes = 8 * size);
    let worker = worker.start_ok();
    let mut most = 0;
    while world.broker.depth() > 0 {
        most = most.max(worker.counters.in_flight_bytes() as usize);
        tokio::time::sleep(MS).await;
    }
    assert!((5 * size..=8 * size).contains(&most), "{most} bytes at once, of {size} each");
    assert_eq!(worker.end().await.handled(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_message_over_the_configured_size_is_dead_lettered_unread() {
    let world = World::new();
    for (id, bytes) in [("small", 100), ("large", 101), ("huge", 2 << 20)] {
        world.broker.publish(Message::builder("x".repeat(bytes)).header("id", id));
    }
    let worker = world.worker().config(|config| config.max_message_bytes = Some(100)).start_ok();
    world.empty().await;
    assert_eq!(world.ids(), ["small"]);
    assert_eq!(worker.end().await.dead_lettered(), 2);
    let letters = world.letters.sent();
    let error = |letter: &crate::publisher::Outgoing| {
        let error = letter.headers.iter().find(|(name, _)| name == "onceward-error");
        String::from_utf8_lossy(&error.unwrap().1).into_owned()
    };
    assert_eq!(error(&letters[0]), "the message has 101 bytes; the limit is 100");
    assert_eq!(letters[1].payload.len(), 2 << 20);
}

#[tokio::test(start_paused = true)]
async fn large_messages_of_a_leaving_partition_go_back_and_free_their_lanes() {
    let world = World::with(Habits { batch: 64, partitions: 2, ..Habits::default() });
    for id in ["a", "b", "c"] {
        world.broker.publish_to(0, Message::builder(large(id, 2)).header("id", id).order_key(id));
    }
    world.broker.publish_to(0, message("behind").order_key("a"));
    world.broker.publish_to(1, message("other").order_key("a"));
    let worker = world.worker().config(|config| config.ordering = Ordering::BrokerKey).start_ok();
    while worker.count(Counter::Received) < 5 {
        tokio::task::yield_now().await;
    }
    world.broker.leave(1, 0);
    eventually("the other partition goes on", || world.ids() == ["other"]).await;
    tokio::time::sleep(SECOND).await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back()), (1, 4));
    assert_eq!(world.ids(), ["other"]);
}
