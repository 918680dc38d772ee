//! The pipeline over a broker and a store in memory, on a virtual clock, under seeded troubles.
//!
//! Every seed draws a configuration, a workload, behaviours of the handler and troubles: deaths, standstills, restarts
//! and outages; lost replies and refusals of the store, the broker and the dead-letter destination. An outside witness
//! checks I1 to I9. A worker's death stops everything it does that others can see, at once and for good: see
//! [`onceward::testing::Process`].
//!
//! `SIM_SEEDS=100000 cargo test -p onceward-tests --test simulation` tries more seeds than the default;
//! `SIM_SEED=123 cargo test -p onceward-tests --test simulation` plays one seed and prints its story.

mod bugs;
mod handlers;
mod plan;
mod watched;
mod witness;
mod world;

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bugs::Bug;
use witness::Outcome;
use world::simulate;

const THREADS: usize = 2;

fn say(text: &str) {
    // The test harness shows it where a test fails, or with --nocapture.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a whole number, not {text:?}")))
}

fn replay(seed: u64) -> String {
    format!("SIM_SEED={seed} cargo test -p onceward-tests --test simulation -- --nocapture seeds")
}

/// Plays `seeds` in two threads; answers each seed's outcome in no order.
fn play(seeds: std::ops::Range<u64>) -> Vec<(u64, Outcome)> {
    let next = AtomicU64::new(seeds.start);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = simulate(seed, None, false);
                    outcomes.lock().expect("no seed panics").push((seed, outcome));
                }
            });
        }
    });
    outcomes.into_inner().expect("no seed panics")
}

#[test]
fn seeds_keep_every_promise() {
    if let Some(seed) = number("SIM_SEED") {
        let outcome = simulate(seed, None, true);
        outcome.story.iter().for_each(|line| say(line));
        assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
        return;
    }
    let started = Instant::now();
    let count = number("SIM_SEEDS").unwrap_or(5_000);
    let outcomes = play(0..count);
    let total = |of: fn(&Outcome) -> u64| outcomes.iter().map(|(_, outcome)| of(outcome)).sum::<u64>();
    let runs = total(|outcome| outcome.runs as u64);
    let (deaths, excused) = (total(|outcome| outcome.deaths as u64), total(|outcome| outcome.excused as u64));
    let (dead, duplicates) = (total(|outcome| outcome.dead as u64), total(|outcome| outcome.duplicates));
    let hours = total(|outcome| outcome.simulated.as_secs()) / 3600;
    say(&format!(
        "{count} seeds in {:.1} s: {hours} h simulated, {} events, {runs} runs, {} effects, {duplicates} duplicates, {dead} dead \
         letters, {deaths} deaths, {excused} excused repeats, {} suspected doubles counted",
        started.elapsed().as_secs_f64(),
        total(|outcome| outcome.events),
        total(|outcome| outcome.effects as u64),
        total(|outcome| outcome.suspected),
    ));
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| !outcome.violations.is_empty()).collect();
    for (seed, outcome) in failed.iter().take(20) {
        say(&format!("seed {seed}: {:#?}\n    {}", outcome.violations, replay(*seed)));
    }
    assert!(failed.is_empty(), "{} of {count} seeds broke a promise", failed.len());
    if count >= 1_000 {
        assert!(deaths > count / 10 && dead > count / 10 && duplicates > count, "the plans are too tame");
        assert!(excused > 0, "no repeat was ever excused: the excuses are untested");
    }
}

#[test]
fn a_seed_has_the_same_trace_each_time() {
    for seed in 0..200 {
        let (first, second) = (simulate(seed, None, false), simulate(seed, None, false));
        assert!(first.events > 10);
        assert_eq!(
            (first.trace, first.events),
            (second.trace, second.events),
            "seed {seed} is not repeatable"
        );
    }
}

/// Seeds until a planted bug is found, at most.
const PATIENCE: u64 = 300;

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        match (0..PATIENCE).find_map(|seed| {
            let outcome = simulate(seed, Some(bug), false);
            outcome.violations.first().map(|violation| (seed, violation.clone()))
        }) {
            Some((seed, violation)) => say(&format!("{bug:?} found by seed {seed}: {violation}")),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found within {PATIENCE} seeds: {missed:?}");
}
