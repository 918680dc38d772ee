//! Runs a part of the pipeline for `valgrind --tool=callgrind`, which counts its instructions: `scripts/instructions`.
//!
//! `instructions NAME MESSAGES` runs that many messages through the pipeline of `NAME`, over the memory broker and the memory store, on
//! one thread. What surrounds the run is outside of [`counted_pipeline`], the function whose instructions count.
//!
//! `instructions telemetry MESSAGES ROUNDS [--json]` measures by the clock what histograms cost: the same pipeline with and without an
//! observer in turns, so often and so briefly that what else the machine does concerns both. `scripts/bench` reads the lines of `--json`.

#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use onceward::pipeline::config::{OnExhausted, Ordering, Policies};
use onceward::telemetry::{Counter, Distribution, Measure, Observer};
use onceward::testing::MemoryBroker;
use onceward::{
    Fingerprinting, Handled, KeySource, MemoryStore, Message, Pipeline, PipelineConfig, Scope, Summary,
    handler_fn,
};

/// The order keys that messages have, and how often a message is delivered in the part with copies.
const LANES: usize = 8;
const COPIES: usize = 10;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["telemetry", messages, rounds] => compare(number(messages), number(rounds), false),
        ["telemetry", messages, rounds, "--json"] => compare(number(messages), number(rounds), true),
        [name, messages] => drop(run(name, number(messages))),
        // `cargo bench` names no part.
        _ => {}
    }
}

fn number(argument: &str) -> usize {
    argument.parse().unwrap_or_else(|error| panic!("{argument} is no number: {error}"))
}

/// Runs a part, and returns how long its pipeline took.
fn run(name: &str, messages: usize) -> Duration {
    let (distinct, config) = part(name, messages).unwrap_or_else(|| panic!("no part {name}"));
    let broker = broker(messages, distinct);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let observer = (name == WITH_HISTOGRAMS).then(|| Arc::new(Histograms::default()) as Arc<dyn Observer>);
    let began = Instant::now();
    let summary = counted_pipeline(&runtime, &broker, config, observer);
    let took = began.elapsed();
    assert_eq!(summary.handled() as usize, distinct);
    assert_eq!((summary.handled() + summary.duplicates()) as usize, messages);
    took
}

/// The same pipeline without and with histograms, in turns; the first one of a round is the second of the next.
fn compare(messages: usize, rounds: usize, json: bool) {
    let mut ratios = Vec::with_capacity(rounds);
    for round in 1..=rounds {
        let mut names = [WITHOUT_HISTOGRAMS, WITH_HISTOGRAMS];
        names.rotate_left(round % 2);
        let mut times = names.map(|name| run(name, messages));
        times.rotate_right(round % 2);
        let [without, with] = times.map(|time| time.as_secs_f64());
        let ratio = without / with;
        ratios.push(ratio);
        if json {
            for (variant, seconds, to) in [
                ("no observer", without, r#""relative_to":null,"ratio":null"#.to_owned()),
                ("histograms", with, format!(r#""relative_to":"no observer","ratio":{ratio}"#)),
            ] {
                let rate = messages as f64 / seconds;
                println!(
                    r#"{{"bench":"telemetry","part":"distinct keys","variant":"{variant}","round":{round},"messages":{messages},"seconds":{seconds},"rate":{rate},{to}}}"#
                );
            }
        }
    }
    if !json {
        ratios.sort_by(f64::total_cmp);
        let quarter = |of: usize| ratios[(rounds - 1) * of / 4];
        println!("with histograms, of without: {:.3} ({:.3} to {:.3})", quarter(2), quarter(1), quarter(3));
    }
}

const WITHOUT_HISTOGRAMS: &str = "distinct-keys";
/// The part whose pipeline has an observer, as the program has one.
const WITH_HISTOGRAMS: &str = "distinct-keys-with-histograms";

struct Histograms {
    distributions: Vec<Distribution>,
    ended: AtomicU64,
}

impl Default for Histograms {
    fn default() -> Self {
        let distributions = Measure::ALL.iter().map(|measure| Distribution::new(*measure)).collect();
        Self { distributions, ended: AtomicU64::new(0) }
    }
}

impl Observer for Histograms {
    fn observe(&self, measure: Measure, values: &[f64]) {
        self.distributions[measure as usize].add(values);
    }

    fn observe_counted(&self, measure: Measure, values: &[(f64, u64)]) {
        self.distributions[measure as usize].add_counted(values);
    }

    fn ended(&self, _origin: Option<&str>, _outcome: Counter, count: u64) {
        self.ended.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
    }
}

/// How many messages differ, and the configuration.
fn part(name: &str, messages: usize) -> Option<(usize, PipelineConfig)> {
    let plain = PipelineConfig::default;
    Some(match name {
        WITHOUT_HISTOGRAMS => (messages, plain()),
        WITH_HISTOGRAMS => (messages, plain()),
        "distinct-keys-without-fingerprints" => {
            (messages, PipelineConfig { fingerprint: Fingerprinting::Off, ..plain() })
        }
        "distinct-keys-in-order" => (messages, PipelineConfig { ordering: Ordering::BrokerKey, ..plain() }),
        "nine-of-ten-are-duplicates" => (messages / COPIES, plain()),
        _ => return None,
    })
}

fn broker(messages: usize, distinct: usize) -> MemoryBroker {
    let broker = MemoryBroker::finite();
    let payload = bytes::Bytes::from(vec![7; 256]);
    for number in 0..messages {
        let id = format!("id-{:020}", number % distinct);
        let order_key = format!("lane-{}", number % LANES);
        broker.publish(Message::builder(payload.clone()).message_id(id).order_key(order_key));
    }
    broker
}

async fn effect(_state: (), message: Message) -> Handled {
    std::hint::black_box(message.payload().len());
    Ok(())
}

/// `scripts/instructions` names it.
#[inline(never)]
fn counted_pipeline(
    runtime: &tokio::runtime::Runtime,
    broker: &MemoryBroker,
    config: PipelineConfig,
    observer: Option<Arc<dyn Observer>>,
) -> Summary {
    let policies = Policies { on_exhausted: OnExhausted::Park, ..Policies::default() };
    let mut pipeline = Pipeline::builder(
        Scope::parse("bench").expect("a scope"),
        broker.consumer(),
        Arc::new(MemoryStore::new()),
    )
    .keys([KeySource::MessageId])
    .config(PipelineConfig { policies, ..config });
    if let Some(observer) = observer {
        pipeline = pipeline.observer(observer);
    }
    let pipeline = pipeline.handler(handler_fn((), effect)).expect("a valid configuration");
    runtime.block_on(pipeline.run(Default::default())).expect("a run")
}
