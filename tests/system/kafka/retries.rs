//! Retry topics while the programs are killed: failed messages wait there, none is lost, each is redelivered when it is due.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::effects::{Kind, Note};
use onceward_test_support::ledger::{Ledger, Produced};
use onceward_test_support::orders::{id_of, order};
use onceward_test_support::process::until;
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::json;

use super::disturbed::counted;
use super::setup;
use super::topic::{Record, Topic};
use crate::pair::{LONG, Waiting, killed_in_turn, pending, scene, stop};
use crate::stage::{ids_of, ledger_of};

/// The waits after the first and after each further failure.
const WAITS: [Duration; 2] = [Duration::from_millis(1200), Duration::from_millis(2400)];
const ATTEMPTS: u32 = 3;

/// What `topic` gives up waits in the two others, and ends in the last.
fn with_retries(topic: &Topic<'_>, short: &Topic<'_>, long: &Topic<'_>, dead: &Topic<'_>) -> Setup {
    let retries = json!({&short.name: "1s", &long.name: "2s"});
    setup(topic)
        .without("pipeline.order_by")
        .set("pipeline.ordering", "none")
        .set("source.kafka.retry_topics", toml::Value::try_from(retries).expect("a table"))
        .set("retry.max_attempts", i64::from(ATTEMPTS))
        .set("retry.initial", "1200ms")
        .set("retry.max", "2400ms")
        .set("retry.jitter", "none")
        // Seals the copies, so that they are believed to come from where they say.
        .set("key.secret", "0123456789abcdef")
        .set("policy.on_exhausted", "dead-letter")
        .set("dead_letter.to", dead.name.as_str())
}

/// Of `count`, every tenth fails once or twice, and every twenty-fifth always; some are there twice.
fn lines(prefix: &str, count: usize, copies: usize, chance: &mut Chance) -> Vec<String> {
    let line = |number: usize| {
        let id = format!("{prefix}-{number:04}");
        match number {
            _ if number % 25 == 7 => order(&id, &json!({"do": "fail"})),
            _ if number % 10 == 3 => order(&id, &json!({"do": "fail", "times": 1 + number % 20 / 10})),
            _ => order(&id, &json!({"ms": 1})),
        }
    };
    let copies = (0..copies).map(|_| line(chance.number(0..count))).collect::<Vec<_>>();
    (0..count).map(line).chain(copies).collect()
}

fn fails_always(line: &str) -> bool {
    line.contains(r#""do":"fail""#) && !line.contains("times")
}

/// The runs of each id, in order.
fn runs(scene: &Scene) -> BTreeMap<String, Vec<Note>> {
    let mut runs = BTreeMap::<_, Vec<_>>::new();
    for note in scene.notes().into_iter().filter(|note| note.kind == Kind::Start) {
        runs.entry(note.id.clone()).or_default().push(note);
    }
    runs
}

/// Each run but the first came when it was due, and there are no more than there may be.
fn assert_due(ids: impl Iterator<Item = String>, runs: &BTreeMap<String, Vec<Note>>) {
    let mut waits = 0;
    for id in ids {
        let runs = &runs[&id];
        assert!(runs.len() <= ATTEMPTS as usize, "{id} ran {} times", runs.len());
        for (two, wait) in runs.windows(2).zip(WAITS) {
            let waited = Duration::from_micros(two[1].start_us - two[0].start_us);
            assert!(waited >= wait, "{id} came after {waited:?}, and was due after {wait:?}");
            waits += 1;
        }
    }
    assert!(waits > 20, "hardly anything waited: {waits}");
}

/// Each letter says where a record with its id stands in `topic`.
fn assert_origins(letters: &[Record], topic: &Topic<'_>) {
    let mut places = BTreeSet::new();
    for record in topic.records() {
        let (partition, offset) = record.place;
        places.insert((id_of(&record.payload), format!("{partition}:{offset}")));
    }
    for Record { payload, headers, .. } in letters {
        assert_eq!(headers["onceward-origin"], topic.name);
        assert_eq!(headers["onceward-attempts"], ATTEMPTS.to_string());
        let position = headers["onceward-position"].rsplitn(3, ':').take(2).collect::<Vec<_>>();
        let place = (id_of(payload), format!("{}:{}", position[1], position[0]));
        assert!(places.contains(&place), "a letter is said to be from {place:?}");
    }
}

#[test]
#[allow(clippy::print_stdout)]
fn what_waits_in_retry_topics_survives_kills_comes_when_it_is_due_and_ends_as_a_letter_of_its_first_place() {
    let topic = Topic::create("retries", 4);
    let [short, long] = ["retries.1s", "retries.2s"].map(|name| Topic::create(name, 2).read_by("retries"));
    let dead = Topic::create("retries.dead", 1);
    let (kills, mut chance) = (kills(3), Chance::new());
    // A copy of a waiting message is due at once; so the part whose delays are checked has no copies.
    let (first, second) = (lines("killed", 1_000, 100, &mut chance), lines("calm", 300, 0, &mut chance));
    let ids = |lines: &[String], dead: bool| -> BTreeSet<String> {
        lines.iter().filter(|line| fails_always(line) == dead).map(|line| id_of(line.as_bytes())).collect()
    };
    let scene = scene(&with_retries(&topic, &short, &long, &dead));
    topic.publish(&first);
    let effects = || scene.count(Kind::Effect).len();
    let in_flight = RefCell::new(BTreeSet::new());
    let killed = || in_flight.borrow_mut().extend(pending(&scene));
    let all = ids(&first, false).len();
    let running = killed_in_turn(&scene, all, kills, effects, killed);
    let waits_nowhere = || [&topic, &short, &long].iter().all(|topic| topic.is_empty());
    until("no lag, nor in retry topics", LONG, waits_nowhere);

    // Without kills, nothing is delivered before it is due, either.
    topic.publish(&second);
    until("all effects", LONG, || effects() == all + ids(&second, false).len());
    until("no lag, nor in retry topics", LONG, waits_nowhere);
    stop(running);

    let excused = ids_of(&scene, &in_flight.borrow());
    let letters = dead.records();
    let dead_ids: Vec<_> = letters.iter().map(|letter| id_of(&letter.payload)).collect();
    let expected: BTreeSet<_> = ids(&first, true).union(&ids(&second, true)).cloned().collect();
    assert_eq!(dead_ids.iter().cloned().collect::<BTreeSet<_>>(), expected, "letters");
    assert!(counted(&dead_ids).values().all(|count| *count <= 1 + u32::try_from(kills).unwrap_or(0)));
    let produced = first.iter().chain(&second).map(|line| id_of(line.as_bytes()));
    let produced = produced.map(|key| Produced { key, order_key: None, confirmed: true }).collect();
    let ledger = Ledger { dead: dead_ids, ..ledger_of(&scene, produced) };
    ledger.verify(&excused);
    let runs = runs(&scene);
    assert_due(second.iter().map(|line| id_of(line.as_bytes())), &runs);
    assert!(ids(&second, true).iter().all(|id| runs[id].len() == ATTEMPTS as usize));
    assert_origins(&letters, &topic);
    let (twice, in_flight) = (ledger.doubled().len(), excused.len());
    println!("{kills} kills, {in_flight} in flight, {twice} with two effects, {} letters", letters.len());
}
