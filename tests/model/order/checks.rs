//! Invariants of sequences, and the planted bugs that break them.

use stateright::{Model, Property};

use super::{Bug, LONG, Lanes, Place, State};
use crate::check::{explore_all, longest_path, must_find, report};

const FIRST_EFFECTS: &str = "first effects come in the order of the lane";
const ONE_AT_A_TIME: &str = "one message of a lane runs at a time";
const SETTLED_IN_ORDER: &str = "no message is settled before one ahead of it";
const ACK_RULE: &str = "what is settled is completed";
const ONE_EFFECT: &str = "one effect, unless its owner died or lost its claim";
const STARTS_WITH_CLAIM: &str = "a turn begins on a claim of its own";
const REFUSAL_STOPS: &str = "after a refused completion no turn begins";
const ATTEMPTS: &str = "only failed runs use attempts";
const SETTLES: &str = "in the end every message is settled";

fn safety() -> Vec<Property<Lanes>> {
    vec![
        Property::always(FIRST_EFFECTS, |_, state: &State| !state.out_of_order),
        Property::always(ONE_AT_A_TIME, |_, state: &State| {
            state.places.iter().filter(|place| **place == Place::Running).count() <= 1
        }),
        Property::always(SETTLED_IN_ORDER, |_, state: &State| {
            state.places.is_sorted_by_key(|place| *place != Place::Settled)
        }),
        Property::always(ACK_RULE, |_, state: &State| !state.settled_early),
        Property::always(ONE_EFFECT, |_, state: &State| {
            (0..LONG).all(|key| state.effects[key] <= 1 || state.excused[key])
        }),
        Property::always(STARTS_WITH_CLAIM, |_, state: &State| !state.started_without_claim),
        Property::always(REFUSAL_STOPS, |_, state: &State| !state.started_after_refusal),
        Property::always(ATTEMPTS, |_, state: &State| state.attempts == state.failures),
        Property::always(SETTLES, |model: &Lanes, state: &State| {
            let mut steps = Vec::new();
            model.actions(state, &mut steps);
            !steps.is_empty() || state.places == [Place::Settled; LONG]
        }),
        Property::sometimes("a message runs while the one before is not completed", |_, state: &State| {
            state.places[..2] == [Place::Sent, Place::Running]
        }),
        Property::sometimes("a completion overtakes the one before", |_, state: &State| {
            state.places[..2] == [Place::Sent, Place::Durable]
        }),
    ]
}

const DISTINCT: [usize; LONG] = [0, 1, 2];

fn lane(faults: u8) -> Lanes {
    Lanes { keys: DISTINCT, faults, bug: None, properties: safety }
}

fn breaks(bug: Bug, bounds: Lanes, properties: &[&'static str]) {
    explore_all(bounds.clone(), State::clone);
    must_find(Lanes { bug: Some(bug), ..bounds }, properties);
}

#[test]
fn sequences_keep_the_order_of_their_lane() {
    for keys in [DISTINCT, [0, 1, 0], [0, 1, 1]] {
        let bounds = Lanes { keys, ..lane(3) };
        let states = explore_all(bounds.clone(), State::clone);
        let steps = longest_path(&bounds, State::clone);
        report(&format!("a lane of {keys:?}, 3 faults: {states} states, longest path {steps} steps"));
    }
}

#[test]
fn a_turn_beside_a_run_breaks_the_order() {
    breaks(Bug::StartsBesideARun, lane(0), &[ONE_AT_A_TIME, FIRST_EFFECTS]);
}

#[test]
fn a_sequence_that_goes_on_after_a_failure_breaks_the_order() {
    breaks(Bug::GoesOnAfterAFailure, lane(1), &[FIRST_EFFECTS]);
}

#[test]
fn passing_a_key_in_progress_elsewhere_breaks_the_order() {
    breaks(Bug::PassesAHeldKey, lane(1), &[FIRST_EFFECTS]);
}

#[test]
fn a_refused_completion_that_does_not_stop_the_sequence_is_noticed() {
    breaks(Bug::GoesOnAfterARefusal, lane(1), &[REFUSAL_STOPS]);
}

#[test]
fn a_turn_on_a_lost_claim_is_noticed() {
    breaks(Bug::StartsWithoutItsClaim, lane(1), &[STARTS_WITH_CLAIM]);
}

#[test]
fn settling_what_is_completed_at_once_passes_an_earlier_message() {
    breaks(Bug::SettlesPastOthers, lane(0), &[SETTLED_IN_ORDER]);
}

#[test]
fn settling_what_is_sent_breaks_the_ack_rule() {
    breaks(Bug::SettlesWhatIsSent, lane(0), &[ACK_RULE]);
}

#[test]
fn two_messages_of_one_key_in_a_sequence_double_its_effect() {
    breaks(Bug::ClaimsAKeyTwice, Lanes { keys: [0, 1, 0], ..lane(0) }, &[ONE_EFFECT]);
}

#[test]
fn claims_of_what_has_not_started_that_are_kept_block_the_lane() {
    breaks(Bug::KeepsUnstartedClaims, lane(1), &[SETTLES]);
}

#[test]
fn a_release_that_uses_an_attempt_is_noticed() {
    breaks(Bug::ReleaseUsesAnAttempt, lane(1), &[ATTEMPTS]);
}
