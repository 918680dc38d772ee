//! The cases the protocol is about do happen in the model; otherwise its properties would hold for nothing.

use stateright::Property;

use crate::check::{explore_all, report};
use crate::model::{Bounds, Fault};
use crate::record::{ClaimId, Record, Stage};
use crate::state::State;
use crate::worker::{Lane, Level, Phase};

#[test]
fn every_row_of_complete_finds_is_met_by_a_completion() {
    for level in [Level::Deduplicated, Level::EffectivelyOnce] {
        let bounds = Bounds { max_attempts: 1, properties: complete_finds, ..Bounds::new(level, 3) };
        let states = explore_all(bounds, State::representative);
        report(&format!("{level:?}: every row of \"complete finds\" is among {states} states"));
    }
}

#[test]
fn every_answer_of_claim_is_met_by_a_claim() {
    let bounds = Bounds { max_attempts: 1, properties: claim_answers, ..Bounds::new(Level::Deduplicated, 3) };
    explore_all(bounds, State::representative);
}

#[test]
fn zombies_late_requests_and_double_effects_do_happen() {
    let bounds = Bounds { properties: misfortunes, ..Bounds::new(Level::Deduplicated, 3) };
    explore_all(bounds, State::representative);
}

#[test]
fn deduplicated_repeats_an_effect_only_after_crash_pause_or_forget() {
    let allowed = &[
        Fault::LostReply,
        Fault::Delay,
        Fault::TakeBack,
        Fault::HandlerFails,
        Fault::HandlerUnavailable,
        Fault::GiveBack,
        Fault::Expire,
    ];
    let properties = || vec![Property::always("one effect, no proviso", |_, state| one_effect(state))];
    let bounds = Bounds { allowed, properties, ..Bounds::new(Level::Deduplicated, 5) };
    let states = explore_all(bounds, State::representative);
    report(&format!("deduplicated, no crash, pause or forget: one effect in {states} states"));
}

#[test]
fn a_transaction_does_commit_under_a_claim_that_the_store_has_lost_while_another_runs() {
    let properties = || {
        vec![Property::sometimes(
            "two transactions of one key, the claim of one is lost",
            |_, state: &State| {
                let completing = |lane: &Lane| lane.phase == Phase::Completing && lane.key == 0;
                state.lanes.iter().all(completing) && state.ghosts[0].claim_forgotten
            },
        )]
    };
    let allowed = &[Fault::StoreCrash];
    explore_all(
        Bounds { allowed, properties, ..Bounds::new(Level::EffectivelyOnce, 1) },
        State::representative,
    );
}

fn one_effect(state: &State) -> bool {
    state.ghosts.iter().all(|ghost| ghost.effects <= 1)
}

fn complete_finds() -> Vec<Property<Bounds>> {
    vec![
        Property::sometimes("pending, mine", |_, s: &State| completing(s, |r, id| r.is_live_claim_of(id))),
        Property::sometimes("pending, mine, the lease ran out", |_, s: &State| {
            completing(s, |r, id| r.stage == Stage::Pending && r.by == id && r.lapsed)
        }),
        Property::sometimes("completed by this claim", |_, s: &State| {
            completing(s, |r, id| r.is_completed_by(id))
        }),
        Property::sometimes("absent", |_, s: &State| completing(s, |r, _| r.stage == Stage::Absent)),
        Property::sometimes("completed by another", |_, s: &State| {
            completing(s, by_another(Stage::Completed))
        }),
        Property::sometimes("dead by another", |_, s: &State| completing(s, by_another(Stage::Dead))),
        Property::sometimes("pending by another", |_, s: &State| completing(s, by_another(Stage::Pending))),
        Property::sometimes("failed by another", |_, s: &State| completing(s, by_another(Stage::Terminal))),
    ]
}

fn claim_answers() -> Vec<Property<Bounds>> {
    vec![
        Property::sometimes("claimed", |_, s: &State| claiming(s, |r, _| r.stage == Stage::Absent)),
        Property::sometimes("claimed by take-over", |_, s: &State| {
            claiming(s, |r, _| r.stage == Stage::Pending && r.lapsed)
        }),
        Property::sometimes("claimed already, by itself", |_, s: &State| {
            claiming(s, |r, id| r.stage == Stage::Pending && !r.lapsed && r.by.token == id.token)
        }),
        Property::sometimes("in progress elsewhere", |_, s: &State| {
            claiming(s, |r, id| r.stage == Stage::Pending && !r.lapsed && r.by.token != id.token)
        }),
        Property::sometimes("completed", |_, s: &State| claiming(s, |r, _| r.stage == Stage::Completed)),
        Property::sometimes("exhausted", |_, s: &State| {
            claiming(s, |r, _| r.stage == Stage::Terminal && r.lapsed)
        }),
        Property::sometimes("exhausted by a lapse", |_, s: &State| {
            claiming(s, |r, _| r.stage == Stage::Pending && r.lapsed && r.started)
        }),
        Property::sometimes("dead", |_, s: &State| claiming(s, |r, _| r.stage == Stage::Dead)),
    ]
}

fn misfortunes() -> Vec<Property<Bounds>> {
    vec![
        Property::sometimes("a zombie's handler runs beside the new owner's", |_, s: &State| {
            s.lanes.iter().all(|lane| lane.phase == Phase::Running && lane.key == 0)
        }),
        Property::sometimes("a late request meets another's claim", |_, s: &State| {
            let foreign = |by: ClaimId| s.late.is_some_and(|late| late.request.claim() != by);
            s.records[0].stage == Stage::Pending && foreign(s.records[0].by)
        }),
        Property::sometimes("a late request meets its own completion", |_, s: &State| {
            s.late.is_some_and(|late| s.records[0].is_completed_by(late.request.claim()))
        }),
        Property::sometimes("a worker holds a message that another holds too", |_, s: &State| {
            let busy = |lane: &Lane| !lane.is_idle();
            s.lanes.iter().all(busy) && s.lanes[0].message == s.lanes[1].message
        }),
        Property::sometimes("two effects", |_, s: &State| !one_effect(s)),
        Property::sometimes("the attempts are used up", |_, s: &State| s.ghosts[0].runs_left == 0),
        Property::sometimes("a dead letter", |_, s: &State| s.ghosts[0].has_letter),
    ]
}

fn completing(state: &State, finds: impl Fn(&Record, ClaimId) -> bool) -> bool {
    in_phase(state, Phase::Completing, finds)
}

fn claiming(state: &State, finds: impl Fn(&Record, ClaimId) -> bool) -> bool {
    in_phase(state, Phase::Claiming, finds)
}

fn in_phase(state: &State, phase: Phase, finds: impl Fn(&Record, ClaimId) -> bool) -> bool {
    let meets = |lane: &Lane| lane.phase == phase && finds(&state.records[lane.key as usize], lane.claim);
    state.lanes.iter().any(meets)
}

fn by_another(stage: Stage) -> impl Fn(&Record, ClaimId) -> bool {
    move |record, id| record.stage == stage && record.by != id
}
