//! Measurements and gauges of a pipeline: each changes by the event that it is about.

use std::collections::HashMap;

use tracing::Span;

use super::transactions::{Inbox, Runs};
use super::*;
use crate::store::Reason;
use crate::telemetry::{IntakePause, LetterSighting, Measure, Observer, delivery_span};

/// Keeps what it observes.
#[derive(Default)]
struct Observed {
    values: Mutex<HashMap<Measure, Vec<f64>>>,
    ends: Mutex<HashMap<(String, Counter), u64>>,
    dead: Mutex<Vec<Reason>>,
    reported: Mutex<u64>,
}

impl Observed {
    fn of(&self, measure: Measure) -> Vec<f64> {
        self.values.lock().unwrap().get(&measure).cloned().unwrap_or_default()
    }

    fn ended(&self, origin: &str, outcome: Counter) -> u64 {
        self.ends.lock().unwrap().get(&(origin.to_owned(), outcome)).copied().unwrap_or(0)
    }
}

impl Observer for Observed {
    fn observe(&self, measure: Measure, values: &[f64]) {
        self.values.lock().unwrap().entry(measure).or_default().extend(values);
    }

    fn ended(&self, origin: Option<&str>, outcome: Counter, count: u64) {
        let origin = origin.unwrap_or_default().to_owned();
        *self.ends.lock().unwrap().entry((origin, outcome)).or_default() += count;
    }

    fn dead_lettered(&self, letter: &LetterSighting<'_>) {
        self.dead.lock().unwrap().push(letter.reason);
    }

    fn report(&self, counters: &Counters) {
        *self.reported.lock().unwrap() = counters.ended();
    }
}

fn observed(world: &World) -> (WorkerBuilder<'_>, Arc<Observed>) {
    let observed = Arc::new(Observed::default());
    let observer = Arc::clone(&observed) as Arc<dyn Observer>;
    (world.worker().with(|worker| worker.observer = Some(observer)), observed)
}

fn from(origin: &str, id: &str) -> MessageBuilder {
    message(id).origin(origin.into())
}

/// Sleeps as many milliseconds as the message says; fails if it says "bad".
async fn sleep_or_fail(message: Message) -> Handled {
    let id = id_of(&message);
    tokio::time::sleep(id.parse().unwrap_or(7) * MS).await;
    if id == "bad" { Err(HandlerError::permanent("broken")) } else { Ok(()) }
}

#[tokio::test(start_paused = true)]
async fn runs_and_attempts_are_measured_by_how_they_ended() {
    let world = World::new();
    let (worker, observed) = observed(&world);
    world.publish_all(["250", "bad"]);
    let worker = worker.start(sleep_or_fail);
    world.empty().await;
    worker.end().await;
    assert_eq!(observed.of(Measure::HandlerSucceeded), [0.25]);
    assert_eq!(observed.of(Measure::HandlerFailed), [0.007]);
    assert_eq!(observed.of(Measure::Attempts), [1.0, 1.0]);
    assert_eq!(*observed.dead.lock().unwrap(), [Reason::Permanent]);
}

/// What a transaction waits for before its handler starts, and after it has returned, is not the handler's time.
#[tokio::test(start_paused = true)]
async fn the_time_of_a_transactional_run_is_that_of_its_handler() {
    let observed = Arc::new(Observed::default());
    let observer = Arc::clone(&observed) as Arc<dyn Observer>;
    let inbox = Inbox { observer: Some(observer), ..Inbox::new() };
    let worker = inbox.start_with(&Runs::default(), |_| {});
    worker.store.set(Faults { latency: 300 * MS, reply_latency: 50 * MS, ..Faults::NONE });
    inbox.world.publish_all(["ok-1", "slow-2"]);
    inbox.world.empty().await;
    worker.end().await;
    let mut times = observed.of(Measure::HandlerSucceeded);
    times.sort_by(f64::total_cmp);
    assert!(times[0] < 0.01 && (8.0..8.01).contains(&times[1]), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_succeeds_at_its_third_attempt_has_three_attempts_and_one_wait() {
    let world = World::new();
    let (worker, observed) = observed(&world);
    world.publish("m");
    let worker = worker.start(|message| async move {
        if message.attempt() < 3 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    });
    world.empty().await;
    worker.end().await;
    assert_eq!(observed.of(Measure::Attempts), [3.0]);
    assert_eq!((observed.of(Measure::HandlerFailed).len(), observed.of(Measure::QueueWait).len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_delivery_waits_while_all_handlers_are_busy() {
    let world = World::with(Habits { batch: 10, ..Habits::default() });
    let (worker, observed) = observed(&world);
    world.publish_all(["300", "100"]);
    let worker = worker.config(|config| config.concurrency = 1).start(sleep_or_fail);
    world.empty().await;
    worker.end().await;
    let waits = observed.of(Measure::QueueWait);
    assert!(waits.len() == 2 && waits[0] < 0.01 && (0.3..0.35).contains(&waits[1]), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn each_call_of_store_and_broker_is_measured() {
    let world = World::new();
    let (worker, observed) = observed(&world);
    let worker = worker.start_ok();
    world.publish("m");
    world.empty().await;
    worker.end().await;
    for measure in [Measure::Claim, Measure::Complete, Measure::Settle] {
        assert_eq!(observed.of(measure).len(), 1, "{measure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_as_old_as_the_completion_of_its_key() {
    let world = World::new();
    let (worker, observed) = observed(&world);
    let worker = worker.start_ok();
    world.publish("m");
    world.empty().await;
    assert!(observed.of(Measure::DuplicateAge).is_empty());
    tokio::time::sleep(600 * SECOND).await;
    world.publish("m");
    world.empty().await;
    worker.end().await;
    let ages = observed.of(Measure::DuplicateAge);
    assert!(ages.len() == 1 && (600.0..601.0).contains(&ages[0]), "{ages:?}");
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_a_message_that_runs_is_a_duplicate_of_no_age() {
    let world = World::with(Habits { batch: 10, ..Habits::default() });
    let (worker, observed) = observed(&world);
    world.publish_all(["100", "100"]);
    let worker = worker.start(sleep_or_fail);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (1, 1));
    assert_eq!(observed.of(Measure::DuplicateAge), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn the_ends_of_deliveries_are_counted_by_origin_and_are_all_there_are() {
    let world = World::with(Habits { batch: 10, ..Habits::default() });
    let (worker, observed) = observed(&world);
    for (origin, id) in
        [("orders", "1"), ("orders", "2"), ("orders", "1"), ("returns", "3"), ("returns", "bad")]
    {
        world.broker.publish(from(origin, id));
    }
    let worker = worker.start(sleep_or_fail);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!(observed.ended("orders", Counter::Handled), 2);
    assert_eq!(observed.ended("orders", Counter::Duplicates), 1);
    assert_eq!(observed.ended("returns", Counter::Handled), 1);
    assert_eq!(observed.ended("returns", Counter::DeadLettered), 1);
    let all: u64 = observed.ends.lock().unwrap().values().sum();
    assert_eq!((all, *observed.reported.lock().unwrap()), (summary.received(), summary.received()));
}

#[tokio::test(start_paused = true)]
async fn a_drain_counts_what_it_gives_back_by_origin() {
    let world = World::with(Habits { batch: 10, ..Habits::default() });
    let (worker, observed) = observed(&world);
    for id in ["1000", "2", "3"] {
        world.broker.publish(from("orders", id));
    }
    let worker = worker.config(|config| config.concurrency = 1).start(sleep_or_fail);
    eventually("the first runs", || !world.runs().is_empty()).await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back()), (1, 2));
    assert_eq!(observed.ended("orders", Counter::GivenBack), 2);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_unsettled_delivery_is_that_whose_handler_hangs() {
    let world = World::new();
    let worker = world.worker().start(sleep_or_fail);
    assert_eq!(worker.counters.oldest_unsettled(), None);
    world.publish("5000");
    eventually("it runs", || worker.counters.running() == 1).await;
    for id in ["1", "2", "3"] {
        tokio::time::sleep(SECOND).await;
        world.publish(id);
    }
    eventually("the others are done", || world.broker.acked() == 3).await;
    let oldest = worker.counters.oldest_unsettled().unwrap();
    assert!((3 * SECOND..4 * SECOND).contains(&oldest), "{oldest:?}");
    world.empty().await;
    eventually("nothing is in flight", || worker.counters.oldest_unsettled().is_none()).await;
    assert_eq!(worker.counters.running(), 0);
    worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_intake_has_its_reason() {
    let world = World::with(Habits { batch: 1, ..Habits::default() });
    let worker = world
        .worker()
        .config(|config| (config.concurrency, config.max_in_flight) = (2, 2))
        .start(sleep_or_fail);
    let counters = Arc::clone(&worker.counters);
    eventually("it has started", || counters.limits().is_some()).await;
    assert_eq!(counters.limits().unwrap().in_flight, 2);
    assert!(counters.paused().is_empty());
    world.publish_all(["500", "501", "502"]);
    eventually("the window is full", || counters.paused().contains(IntakePause::InFlight)).await;
    assert!(!counters.paused().contains(IntakePause::Store));
    world.empty().await;
    eventually("there is room", || counters.paused().is_empty()).await;
    worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_pauses_intake() {
    let world = World::with(Habits { batch: 10, ..Habits::default() });
    let worker = world.worker().start(sleep_or_fail);
    let counters = Arc::clone(&worker.counters);
    world.publish("1");
    world.empty().await;
    worker.store.go_down();
    let ids: Vec<String> = (0..60).map(|number| format!("down {number}")).collect();
    world.publish_all(ids.iter().map(String::as_str));
    eventually("the store is down", || counters.paused().contains(IntakePause::Store)).await;
    worker.store.come_up();
    world.empty().await;
    eventually("intake goes on", || counters.paused().is_empty()).await;
    worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_is_seen_and_pauses_intake() {
    let world = World::new();
    let service = unavailable::Service::is_down();
    let handler = service.clone();
    let worker = world.worker().start(move |_| std::future::ready(handler.ask()));
    world.publish_all(["a", "b", "c", "d"]);
    let counters = Arc::clone(&worker.counters);
    eventually("it opens", || counters.is_breaker_open()).await;
    eventually("intake pauses", || counters.paused().contains(IntakePause::Handler)).await;
    service.set(false);
    world.empty().await;
    eventually("it closes", || !counters.is_breaker_open() && counters.paused().is_empty()).await;
    worker.end().await;
}

/// Keeps the exemplars of deliveries, which have spans if `has_spans` is set.
#[derive(Default)]
struct Exemplars {
    has_spans: bool,
    values: Mutex<Vec<(Measure, f64)>>,
}

impl Observer for Exemplars {
    fn exemplar(&self, measure: Measure, value: f64, _: &Span) {
        self.values.lock().unwrap().push((measure, value));
    }

    fn span(&self, message: &Message) -> Span {
        if self.has_spans { delivery_span("memory", message) } else { Span::none() }
    }
}

#[tokio::test(start_paused = true)]
async fn long_waits_and_ages_of_duplicates_are_exemplars_where_deliveries_have_spans() {
    // Without a subscriber no delivery has a span; see `secrets.rs` for the second.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _guard = tracing::subscriber::set_default(super::secrets::Everything::default());
    for has_spans in [true, false] {
        let world = World::with(Habits { batch: 10, ..Habits::default() });
        let observer = Arc::new(Exemplars { has_spans, ..Exemplars::default() });
        let worker = world.worker().with(|worker| worker.observer = Some(Arc::clone(&observer) as _));
        let worker = worker.config(|config| config.concurrency = 2).start(sleep_or_fail);
        world.publish_all(["400", "401"]);
        for id in ["10", "11"] {
            tokio::time::sleep(100 * MS).await;
            world.publish(id);
        }
        world.empty().await;
        tokio::time::sleep(60 * SECOND).await;
        world.publish("10");
        world.empty().await;
        worker.end().await;
        let values = observer.values.lock().unwrap();
        let of = |measure| values.iter().filter(move |(of, _)| *of == measure).map(|(_, value)| *value);
        let (waits, ages): (Vec<_>, Vec<_>) =
            (of(Measure::QueueWait).collect(), of(Measure::DuplicateAge).collect());
        if has_spans {
            assert!(waits.iter().any(|wait| (0.29..0.31).contains(wait)), "{waits:?}");
            assert!(ages.len() == 1 && (60.0..61.0).contains(&ages[0]), "{ages:?}");
        } else {
            assert_eq!((waits, ages), (vec![], vec![]));
        }
    }
}

#[cfg(feature = "metrics")]
#[tokio::test(start_paused = true)]
async fn the_bridge_passes_on_what_is_measured_and_counted() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    let world = World::new();
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    // Its methods run in other tasks of this thread.
    let _installed = metrics::set_default_local_recorder(&recorder);
    let observer = Arc::new(crate::telemetry::MetricsObserver::new(&world.scope));
    world.broker.publish(from("orders", "250"));
    let worker = world.worker().with(|worker| worker.observer = Some(observer)).start(sleep_or_fail);
    world.empty().await;
    worker.end().await;
    let mut found = HashMap::new();
    for (key, _, _, value) in snapshots.snapshot().into_vec() {
        let labels: Vec<_> =
            key.key().labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        found.insert(format!("{}{{{}}}", key.key().name(), labels.join(",")), value);
    }
    let count = |name: &str| found.get(name).unwrap_or_else(|| panic!("{name} is not in {:?}", found.keys()));
    assert_eq!(*count("onceward_handled_total{scope=billing}"), DebugValue::Counter(1));
    assert_eq!(
        *count("onceward_deliveries_total{scope=billing,origin=orders,outcome=handled}"),
        DebugValue::Counter(1)
    );
    let DebugValue::Histogram(runs) = count("onceward_handler_seconds{scope=billing,outcome=succeeded}")
    else {
        panic!("no histogram");
    };
    assert_eq!(runs.iter().map(|seconds| seconds.into_inner()).collect::<Vec<_>>(), [0.25]);
    assert_eq!(*count("onceward_in_flight{scope=billing}"), DebugValue::Gauge(0.0.into()));
    assert!(found.contains_key("onceward_intake_paused{scope=billing,reason=store}"));
}
