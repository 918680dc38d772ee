//! Invariants of redrives, and the planted bugs that break them.

use stateright::{Model, Property};

use super::{Bug, Record, Redrives, State};
use crate::check::{explore_all, longest_path, must_find, report};
use crate::record::Stage;

const NOTHING_LOST: &str = "without effect there is a message or a letter";
const ONE_EFFECT: &str = "at most one effect, however often redriven";
const STAYS_DEAD: &str = "a copy of a dead message does not run";
const RUNS: &str = "a redriven letter runs before it is dead-lettered again";
const SETTLES: &str = "in the end there is one effect, no message and no letter";

fn safety() -> Vec<Property<Redrives>> {
    vec![
        Property::always(NOTHING_LOST, |_, state: &State| state.effects > 0 || state.is_at_the_broker()),
        Property::always(ONE_EFFECT, |_, state: &State| state.effects <= 1),
        Property::always(STAYS_DEAD, |_, state: &State| !state.revived),
        Property::always(RUNS, |_, state: &State| !state.refused),
        Property::always(SETTLES, |model: &Redrives, state: &State| {
            let mut steps = Vec::new();
            model.actions(state, &mut steps);
            !steps.is_empty() || state.effects == 1 && !state.is_at_the_broker()
        }),
        Property::sometimes("a key dies twice", |_, state: &State| {
            state.record == Record { stage: Stage::Dead, generation: 1 }
        }),
    ]
}

/// Two copies of the message, two failing runs, and so many faults.
pub(crate) fn redrives(faults: u8) -> Redrives {
    Redrives { copies: 2, failures: 2, faults, bug: None, properties: safety }
}

fn breaks(bug: Bug, faults: u8, property: &'static str) {
    explore_all(redrives(faults), State::clone);
    must_find(Redrives { bug: Some(bug), ..redrives(faults) }, &[property]);
}

#[test]
fn a_redriven_message_has_one_effect_and_no_letter_is_left() {
    let states = explore_all(redrives(3), State::clone);
    let steps = longest_path(&redrives(3), State::clone);
    report(&format!(
        "redrive, 3 faults: {states} unique states, no counterexample, longest path {steps} steps"
    ));
}

#[test]
fn deleting_the_letter_before_its_message_is_out_loses_it() {
    breaks(Bug::LetterDeletedFirst, 1, NOTHING_LOST);
}

#[test]
fn taking_an_opened_key_for_a_redriven_one_loses_the_message() {
    breaks(Bug::UnfinishedTakenForDone, 1, NOTHING_LOST);
}

#[test]
fn acking_a_moved_letter_as_a_late_copy_loses_the_message() {
    breaks(Bug::HeadersIgnored, 0, NOTHING_LOST);
}

#[test]
fn a_late_copy_that_opens_a_dead_key_runs_without_a_redrive() {
    breaks(Bug::LateCopyReopens, 0, STAYS_DEAD);
}

#[test]
fn redriving_a_completed_key_repeats_its_effect() {
    breaks(Bug::CompletedReopened, 2, ONE_EFFECT);
}

#[test]
fn a_letter_whose_burial_was_not_written_is_dead_lettered_again_unless_its_redrive_reopens_it() {
    breaks(Bug::UnburiedStaysClosed, 1, RUNS);
}
