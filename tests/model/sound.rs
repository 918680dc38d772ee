//! The protocol as designed keeps every property, within these bounds.

use crate::check::{explore_all, longest_path, report};
use crate::model::Bounds;
use crate::state::State;
use crate::worker::Level::{self, Deduplicated, EffectivelyOnce};

fn holds(name: &str, bounds: Bounds) {
    let (level, faults) = (bounds.level, bounds.faults);
    let states = explore_all(bounds, State::representative);
    report(&format!("{name}, {level:?}, {faults} faults: {states} unique states, no counterexample"));
}

#[test]
fn two_workers_and_two_copies_deduplicated() {
    holds("two workers, two copies of one key", Bounds::new(Deduplicated, 4));
}

#[test]
fn two_workers_and_two_copies_effectively_once() {
    holds("two workers, two copies of one key", Bounds::new(EffectivelyOnce, 4));
}

#[test]
fn one_message_and_many_faults() {
    for level in [Deduplicated, EffectivelyOnce] {
        holds("two workers, one message", Bounds { messages: &[0], ..Bounds::new(level, 5) });
    }
}

#[test]
fn one_attempt_ends_in_the_dead_letter_queue() {
    for level in [Deduplicated, EffectivelyOnce] {
        holds("two workers, one attempt", Bounds { max_attempts: 1, ..Bounds::new(level, 3) });
    }
}

#[test]
fn two_lanes_of_one_worker() {
    for level in [Deduplicated, EffectivelyOnce] {
        holds("one worker with two lanes", Bounds { worker_of: [0, 0], ..Bounds::new(level, 3) });
    }
}

#[test]
fn two_keys_do_not_disturb_each_other() {
    for level in [Deduplicated, EffectivelyOnce] {
        holds("two workers, two keys", Bounds { messages: &[0, 1], ..Bounds::new(level, 3) });
    }
}

/// Without this, "settled where nothing more can happen" would prove nothing about a path that never reaches such a state.
#[test]
fn every_path_ends() {
    for level in [Deduplicated, EffectivelyOnce] {
        let steps = longest_path(&Bounds::new(level, 3), State::representative);
        report(&format!("{level:?}: every path ends, the longest after {steps} steps"));
    }
}

/// One fault more than the tests above. Run with `--ignored`.
#[test]
#[ignore = "takes two minutes"]
fn deep() {
    let deep = |level: Level| Bounds::new(level, 5);
    for level in [Deduplicated, EffectivelyOnce] {
        holds("two workers, two copies of one key", deep(level));
        holds("one worker with two lanes", Bounds { worker_of: [0, 0], ..deep(level) });
        holds("two workers, two keys", Bounds { messages: &[0, 1], faults: 4, ..deep(level) });
    }
}
