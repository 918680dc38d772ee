//! Checks which source gives a key, and which payloads count as the same.

use std::fmt::Write as _;

use super::*;
use crate::key::Fingerprinting;
use crate::message::Position;

fn default_sources() -> Vec<KeySource> {
    vec![KeySource::Header("idempotency-key".into()), KeySource::MessageId, KeySource::Position]
}

/// Keeps the messages and fields of warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl tracing::field::Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        if *event.metadata().level() == tracing::Level::WARN {
            let mut text = Text(String::new());
            event.record(&mut text);
            self.0.lock().unwrap().push(text.0);
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn each_key_is_counted_under_its_source_and_a_fallback_to_positions_is_warned_of_once() {
    let warnings = Warnings::default();
    // See `secrets`: with one subscriber alone, other tests decide what is logged.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let guard = tracing::subscriber::set_default(warnings.clone());
    let world = World::new();
    let position = |offset| Position { incarnation: Arc::from("topic"), partition: 0, offset };
    let plain = |offset: u64| Message::builder(offset.to_string()).position(position(offset));
    world.broker.publish(plain(1).header("idempotency-key", "a"));
    world.broker.publish(plain(2).message_id("b"));
    for offset in 3..6 {
        world.broker.publish(plain(offset).header("Idempotency-Key", "U"));
    }
    let worker = world.worker().with(|worker| worker.keys = default_sources()).start_ok();
    world.empty().await;
    let counted = worker.counters.key_sources();
    let counted: Vec<_> = counted.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(counted, [("header:idempotency-key", 1), ("message-id", 1), ("position", 3)]);
    let _ = worker.end().await;
    drop(guard);
    let texts = warnings.0.lock().unwrap().clone();
    let of = |what: &str| texts.iter().filter(|text| text.contains(what)).count();
    assert_eq!((of("keyed by position"), of("differs in letter case")), (1, 1), "{texts:?}");
    let hint = texts.iter().find(|text| text.contains("differs in letter case")).unwrap();
    assert!(hint.contains("found=\"Idempotency-Key\""), "{hint}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_composite_gives_no_key_and_not_the_same_key_to_all() {
    let world = World::new();
    world.publish_all(["a", "b", "c"]);
    let empty = KeySource::Composite(vec![]);
    let keys = crate::extract::KeyExtractor::new(&world.scope, vec![empty.clone()]);
    assert!(keys.key_of(&message("a").build()).is_err());
    let nested = crate::extract::KeyExtractor::new(&world.scope, vec![KeySource::Composite(vec![empty])]);
    assert!(nested.key_of(&message("a").build()).is_err());
}

const ORIGINAL: &str = r#"{"id":1,"a":1,"b":2}"#;
const SERIALISED_ANEW: [&str; 4] = [
    r#"{"b":2,"a":1,"id":1}"#,
    r#"{"id": 1, "a": 1, "b": 2}"#,
    "{\n  \"id\": 1.0,\n  \"\\u0061\": 1,\n  \"b\": 2e0\n}",
    r#"{"id":1,"a":1,"b":2}"#,
];

/// Duplicates and mismatches among copies of one message with these payloads.
async fn compare(fingerprinting: Fingerprinting, payloads: &[&str]) -> (u64, u64) {
    let world = World::new();
    let worker = world.worker().config(|config| config.fingerprint = fingerprinting).start_ok();
    for payload in payloads {
        world.broker.publish(Message::builder(payload.to_string()).header("id", "1"));
        world.empty().await;
    }
    let summary = worker.end().await;
    (summary.duplicates(), summary.counters().get(Counter::Mismatches))
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_was_serialised_anew_is_a_duplicate() {
    let copies: Vec<_> = [ORIGINAL].into_iter().chain(SERIALISED_ANEW).collect();
    assert_eq!(compare(Fingerprinting::Json, &copies).await, (4, 0));
    assert_eq!(compare(Fingerprinting::Bytes, &copies).await, (1, 3));
    assert_eq!(compare(Fingerprinting::Off, &copies).await, (4, 0));
    let another = r#"{"id":1,"a":1,"b":3}"#;
    assert_eq!(compare(Fingerprinting::Json, &[ORIGINAL, another]).await, (0, 1));
    assert_eq!(compare(Fingerprinting::Off, &[ORIGINAL, another]).await, (1, 0));
}

#[tokio::test(start_paused = true)]
async fn with_pointers_only_what_they_select_is_compared() {
    let selected = || Fingerprinting::Pointers(vec!["/a".into(), "/b".into()]);
    let timed = |time: &str| format!(r#"{{"id":1,"a":1,"b":2,"sentAt":"{time}"}}"#);
    let (first, second) = (timed("12:00:00"), timed("12:00:01"));
    assert_eq!(compare(selected(), &[&first, &second, ORIGINAL]).await, (2, 0));
    assert_eq!(compare(Fingerprinting::Json, &[&first, &second]).await, (0, 1));
    assert_eq!(compare(selected(), &[ORIGINAL, r#"{"id":1,"a":1,"b":3}"#]).await, (0, 1));
}

#[tokio::test(start_paused = true)]
async fn payloads_that_mean_the_same_have_one_payload_hash() {
    let scope = Scope::parse("billing").unwrap();
    let keys = crate::extract::KeyExtractor::new(&scope, vec![KeySource::PayloadHash]);
    let key = |payload: &str| keys.key_of(&Message::builder(payload.to_owned()).build()).unwrap();
    for copy in SERIALISED_ANEW {
        assert_eq!(key(copy), key(ORIGINAL), "{copy}");
        assert_eq!(
            keys.fallback(&Message::builder(copy).build()),
            key(ORIGINAL),
            "the policy on missing keys"
        );
    }
    assert_ne!(key(r#"{"id":1,"a":1,"b":3}"#), key(ORIGINAL));
    assert_ne!(key("pay  7"), key("pay 7"));
}
