//! An outage of each component under load: few log lines, an alert that names the component, and a runbook whose command
//! shows what is wrong and, once it is repaired, that all is well.
//!
//! With `SLOW=1` an outage lasts longer than two minutes, and every minute of it is looked at.

mod alerts;
mod brokers;
mod parts;

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use onceward_test_servers::ports::free_port;
use onceward_test_servers::proxy::Proxy;
use onceward_test_support::chance::size;
use onceward_test_support::orders::order;
use onceward_test_support::process::{Ended, Running, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use crate::pair::{LONG, Waiting, scene, stop};
use crate::stage::PATIENCE;
use crate::telemetry::scrape::{Samples, Scrape};
use alerts::{Alert, assert_fires};

const MINUTE: Duration = Duration::from_secs(60);

/// The most log lines of a program in a minute of an outage, its begin and its end included.
const LINES: f64 = 20.0;

/// Messages that arrive at once.
const BATCH: usize = 10;

/// The interval of batches, and of looks at the log.
const INTERVAL: Duration = Duration::from_millis(500);

fn length() -> Duration {
    Duration::from_secs(size(24, 130))
}

type Act<'a> = Box<dyn FnMut(&Scene) + 'a>;
type Ask<'a> = Box<dyn Fn(&Scene) -> bool + 'a>;

/// A program under load, and the part that it loses.
struct Outage<'a> {
    /// The alert that has to fire.
    alert: &'static str,
    /// The word for the component in the alert.
    component: &'static str,
    /// What the alert's command shows as long as the outage lasts.
    shows: &'static str,
    scene: &'a Scene,
    running: Running,
    port: u16,
    /// Makes work.
    load: Act<'a>,
    /// True if no work is left.
    is_done: Ask<'a>,
    /// Takes the component away.
    begin: Act<'a>,
    /// Repairs it.
    repair: Act<'a>,
}

/// A run that is scraped, in a scope of the name of its component.
fn started(name: &str, setup: Setup) -> (Scene, Running, u16) {
    started_with(name, setup, |_| ())
}

/// As [`started`], with further files in the scene.
fn started_with(name: &str, setup: Setup, prepare: impl FnOnce(&Scene)) -> (Scene, Running, u16) {
    let port = free_port().expect("a port");
    let setup = setup
        .set("scope", format!("outage-{name}"))
        .set("telemetry.listen", format!("127.0.0.1:{port}"))
        // What a worker's death in the middle of a message costs is not looked at here.
        .set("retry.max_attempts", 50);
    let scene = scene(&setup);
    prepare(&scene);
    let running = scene.run();
    (scene, running, port)
}

/// Work that a source's producers make, and the look at its end.
fn loaded<'a>(source: &'a (impl Waiting + 'a)) -> (Act<'a>, Ask<'a>) {
    loaded_with(source, json!({}))
}

/// As [`loaded`], with these fields in each message.
fn loaded_with<'a>(source: &'a (impl Waiting + 'a), fields: Value) -> (Act<'a>, Ask<'a>) {
    let next = Cell::new(0);
    let load = move |_: &Scene| {
        let numbers = next.get()..next.get() + BATCH;
        next.set(numbers.end);
        let line = |number| order(&format!("order-{number:05}"), &fields);
        source.publish(&numbers.map(line).collect::<Vec<_>>());
    };
    (Box::new(load), Box::new(|_: &Scene| source.is_empty()))
}

/// What takes a component away that is behind a proxy, and what repairs it.
fn refusing<'a>(proxy: &'a Proxy) -> (Act<'a>, Act<'a>) {
    (Box::new(|_: &Scene| proxy.refuse()), Box::new(|_: &Scene| proxy.heal()))
}

impl Outage<'_> {
    fn survive(mut self) {
        let alert = Alert::read(self.alert);
        alert.names(self.component);
        let runbook = alert.runbook();
        let own = alert.command.replace("FILE", "orders.toml");
        assert!(runbook.contains(&own), "the runbook of {} has its command: {runbook}", self.alert);
        let command = alert.command.replace("FILE", "onceward.toml");

        let scrape = Scrape(self.port);
        let read = || scrape.read().unwrap_or_default();
        until("it is up", PATIENCE, || is_up(&read()));
        (self.load)(self.scene);
        until("the first work is done", PATIENCE, || (self.is_done)(self.scene));
        let before = read();
        let mut log = LogWatch::of(&self.running);

        (self.begin)(self.scene);
        while log.took() < length() {
            (self.load)(self.scene);
            thread::sleep(INTERVAL);
            log.look(&self.running);
        }
        let during = read();
        let shown = self.execute(&command);
        assert!(shown.stdout.contains(self.shows), "{command} shows the outage: {shown:#?}");
        (self.repair)(self.scene);
        until("all work is done", LONG, || (self.is_done)(self.scene));
        until("it is up again", PATIENCE, || is_up(&read()));
        log.end(&self.running, self.alert);

        assert_fires(self.scene, self.alert, &[self.alert], &before, &during);
        let after = self.execute(&command);
        assert_eq!(after.code(), Some(0), "{command}, after the outage: {after:#?}");
        assert!(!after.stdout.contains(self.shows), "{command}, after the outage: {after:#?}");
        // A minute later: as it is now.
        let now = read();
        assert_fires(self.scene, self.alert, &[], &now, &now);
        stop(vec![self.running]);
    }

    fn execute(&self, command: &str) -> Ended {
        let words: Vec<_> = command.split(' ').collect();
        let [program, words @ ..] = &words[..] else { panic!("{command} is a command") };
        assert_eq!(*program, "onceward");
        self.scene.execute(words)
    }
}

fn is_up(samples: &Samples) -> bool {
    let up = |name: &str| samples.get(name).is_none_or(|value| *value == 1.0);
    samples.contains_key("store_up") && ["store_up", "source_up", "handler_up"].into_iter().all(up)
}

/// How many lines the log of a program has, over time.
struct LogWatch {
    began: Instant,
    looks: Vec<(Duration, usize)>,
}

impl LogWatch {
    fn of(running: &Running) -> Self {
        Self { began: Instant::now(), looks: vec![(Duration::ZERO, running.stderr().lines().count())] }
    }

    fn took(&self) -> Duration {
        self.began.elapsed()
    }

    fn look(&mut self, running: &Running) {
        self.looks.push((self.took(), running.stderr().lines().count()));
    }

    /// Lines between two times.
    fn lines(&self, from: Duration, to: Duration) -> usize {
        let until = |time| {
            let (_, lines) =
                self.looks.iter().take_while(|(at, _)| *at <= time).last().expect("the first look");
            *lines
        };
        until(to) - until(from)
    }

    /// No minute has more lines than may be. What is missing of the first minute is taken to be as its last part was.
    #[allow(clippy::print_stdout)]
    fn end(mut self, running: &Running, name: &str) {
        let outage = self.looks.last().expect("a look").0;
        self.look(running);
        let end = self.looks.last().expect("a look").0;
        let minutes = self.looks.iter().map(|(from, _)| self.lines(*from, *from + MINUTE));
        let most = minutes.max().expect("a look") as f64;
        let second_half = self.lines(outage / 2, outage) as f64 / (outage / 2).as_secs_f64();
        let expected = most + second_half * MINUTE.saturating_sub(end).as_secs_f64();
        println!("{name}: {most} lines at most, {expected:.1} expected in a minute; over after {end:?}");
        assert!(expected <= LINES, "{expected} lines a minute in an outage:\n{}", running.stderr());
    }
}

/// All at once, since they wait most of the time.
#[test]
fn an_outage_of_each_component_has_few_lines_an_alert_that_names_it_and_a_command() {
    let stories: [fn(); 11] = [
        brokers::rabbitmq,
        brokers::kafka,
        brokers::sqs,
        brokers::pubsub,
        parts::redis,
        parts::postgres,
        parts::http_handler,
        parts::worker,
        parts::relay,
        parts::collector,
        parts::dead_letters,
    ];
    // A story that panics fails the scope, once all have ended.
    thread::scope(|threads| stories.into_iter().for_each(|story| drop(threads.spawn(story))));
}
