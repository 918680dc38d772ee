//! Sightings of keys in observe mode, and of dead letters: one for each delivery.

use super::*;
use crate::pipeline::config::Mode;
use crate::store::Reason;
use crate::telemetry::{KeySighting, KnownAs, LetterSighting};

type Letter = (String, Option<Key>, Reason, Option<String>);

/// Keeps what it is given.
#[derive(Default)]
struct Sightings {
    keys: Mutex<Vec<(Key, KnownAs)>>,
    letters: Mutex<Vec<Letter>>,
}

impl Observer for Sightings {
    fn sighted(&self, sighting: &KeySighting) {
        assert!(sighting.fingerprint.is_some());
        self.keys.lock().unwrap().push((sighting.key, sighting.known));
    }

    fn dead_lettered(&self, letter: &LetterSighting<'_>) {
        let origin = letter.origin.map(str::to_owned);
        self.letters.lock().unwrap().push((letter.id.to_owned(), letter.key, letter.reason, origin));
    }
}

fn sightings(world: &World, mode: Mode) -> (WorkerBuilder<'_>, Arc<Sightings>) {
    let sightings = Arc::new(Sightings::default());
    let observer = Arc::clone(&sightings) as Arc<dyn Observer>;
    let worker = world.worker().with(|worker| worker.observer = Some(observer));
    (worker.config(|config| config.mode = mode), sightings)
}

#[tokio::test(start_paused = true)]
async fn observe_mode_reports_for_each_delivery_what_the_store_knew_of_its_key() {
    let world = World::new();
    let _elsewhere = world.claim_elsewhere("held", 3600 * SECOND).await;
    let (worker, sightings) = sightings(&world, Mode::Observe);
    let worker = worker.start_ok();
    world.publish("a");
    world.empty().await;
    tokio::time::sleep(90 * SECOND).await;
    world.publish_all(["a", "held"]);
    world.broker.publish(Message::builder("another payload").header("id", "a"));
    world.empty().await;
    let summary = worker.end().await;
    let mut seen = sightings.keys.lock().unwrap().clone();
    let first = seen.remove(0);
    assert_eq!(first, (world.key("a"), KnownAs::New));
    seen.sort_by_key(|(_, known)| format!("{known:?}"));
    let [(completed, KnownAs::Completed(age)), in_progress, mismatch] = seen[..] else {
        panic!("not three sightings after the first: {seen:?}")
    };
    assert!(completed == world.key("a") && age >= 90 * SECOND && age < 95 * SECOND, "{age:?}");
    assert_eq!(in_progress, (world.key("held"), KnownAs::InProgress));
    assert_eq!(mismatch, (world.key("a"), KnownAs::Mismatch));
    let count = |counter| summary.counters().get(counter);
    assert_eq!((count(Counter::ObservedDuplicates), count(Counter::Mismatches)), (2, 1));
    assert_eq!(summary.handled(), 4, "nothing is suppressed");
}

#[tokio::test(start_paused = true)]
async fn the_retries_of_an_observed_duplicate_are_no_further_duplicates() {
    let world = World::new();
    let (worker, sightings) = sightings(&world, Mode::Observe);
    let runs = Arc::new(Mutex::new(0));
    let worker = worker.start(move |_| {
        let mut runs = runs.lock().unwrap();
        *runs += 1;
        // The second run is the first of the duplicate.
        let failed = *runs == 2;
        async move { if failed { Err(HandlerError::retry("busy")) } else { Ok(()) } }
    });
    world.publish("a");
    world.empty().await;
    world.publish("a");
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.retried()), (2, 1));
    assert_eq!(summary.counters().get(Counter::ObservedDuplicates), 1);
    assert_eq!(sightings.keys.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_reported_with_its_key_and_nothing_of_its_content() {
    let world = World::new();
    let (worker, sightings) = sightings(&world, Mode::Enforce);
    let worker = worker.start(|_| async { Err(HandlerError::permanent("broken")) });
    world.broker.publish(message("bad").origin("orders".into()));
    world.empty().await;
    worker.end().await;
    let id = world.letters.sent()[0].own_id.clone();
    let letter = (id, Some(world.key("bad")), Reason::Permanent, Some("orders".to_owned()));
    assert_eq!(*sightings.letters.lock().unwrap(), [letter]);
    assert!(sightings.keys.lock().unwrap().is_empty(), "only observe mode reports keys");
}
