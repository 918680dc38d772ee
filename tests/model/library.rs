//! The library's own transitions answer and write as the model's do, in every state the model reaches.
//!
//! The model would be of little use if it were right and the code were not. [`Record`](library::Record) decides for every
//! store that decides in the process; the others pass the same conformance suite.

use std::time::Duration;

use onceward::Key;
use onceward::store::transition::{self as library, Moment, Step};
use onceward::store::{
    Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, FailRequest, Failure,
    KeyState, Lease, OwnerToken, Reason, Redrive, RedriveRequest, RenewRequest, Renewal,
};
use stateright::Property;

use crate::check::{explore_all, report};
use crate::model::Bounds;
use crate::record::{Answer, ClaimId, Record, Request, Rules, Stage};
use crate::redrive::{self, Claimed, Found, GENERATIONS, Redrives};
use crate::state::State;
use crate::worker::Level::{Deduplicated, EffectivelyOnce};

const KEY: Key = Key::from_bytes([7; 16]);
const LEASE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(600);

#[test]
fn the_librarys_transitions_are_the_models() {
    for level in [Deduplicated, EffectivelyOnce] {
        let bounds = Bounds { properties: agreement, ..Bounds::new(level, 3) };
        let states = explore_all(bounds, State::representative);
        report(&format!("{level:?}: the library agrees with the model in {states} states"));
    }
}

fn agreement() -> Vec<Property<Bounds>> {
    vec![Property::always("the library answers and writes as the model", |model: &Bounds, state: &State| {
        let asked = |request: Request| agrees(&state.records[0], request, state.next_fence, model.rules());
        let lanes = state.lanes.iter().filter(|lane| !lane.is_idle()).map(|lane| lane.claim);
        let late = state.late.iter().map(|late| late.request.claim());
        let stranger = ClaimId { token: state.next_token, fence: state.next_fence };
        let claims = lanes.chain(late).chain([state.records[0].by, stranger]);
        claims.filter(|id| id.token != 0).all(|id| requests_of(id).into_iter().all(asked))
    })]
}

#[test]
fn the_librarys_redrives_are_the_models() {
    let properties = || {
        vec![Property::always("the library redrives as the model", |_, state: &redrive::State| {
            (0..GENERATIONS as u8).all(|generation| redrives_agree(state.record, generation))
        })]
    };
    let states = explore_all(Redrives { properties, ..redrive::redrives(3) }, redrive::State::clone);
    report(&format!("the library redrives as the model in {states} states"));
}

/// Claims the key with a delivery of this generation, and redrives its letter, in the model and in the library.
fn redrives_agree(record: redrive::Record, generation: u8) -> bool {
    let at = Moment { now: 0, fence_floor: 0 };
    let known = record != redrive::Record { stage: Stage::Absent, generation: 0 };
    let stored = library::Record {
        state: state_of(record.stage),
        generation: record.generation.into(),
        ttl: library::micros(TTL),
        ..library::Record::nothing()
    };
    let stored = if known { stored } else { library::Record::nothing() };
    let same = |ours: redrive::Record, theirs: &library::Record| {
        state_of(ours.stage) == theirs.state && u32::from(ours.generation) == theirs.generation
    };

    let (mut ours, mut theirs) = (record, stored.clone());
    let our_claim = ours.claim(generation, None);
    let terms = ClaimTerms { lease: LEASE, max_attempts: 1, ttl: TTL };
    let request =
        ClaimRequest { key: KEY, owner: owner(1), fingerprint: None, generation: generation.into() };
    let their_claim = match theirs.claim(at, &terms, &request).answer {
        Claim::Claimed(_) => Claimed::Run,
        Claim::Exhausted(_) => Claimed::DeadLetter,
        // More than a copy of what died: the pipeline dead-letters it again.
        Claim::Dead { generation: died, .. } if request.generation > died => Claimed::DeadLetter,
        Claim::Completed { .. } | Claim::Dead { .. } => Claimed::Ack,
        other => panic!("no claim is live and there are no fingerprints: {other:?}"),
    };
    let claims_agree = our_claim == their_claim && same(ours, &theirs);

    let (mut ours, mut theirs) = (record, stored);
    let our_redrive = ours.redrive(generation, false, None);
    let request = RedriveRequest { key: KEY, generation: generation.into(), ttl: TTL };
    let their_redrive = match theirs.redrive(at, &request).answer {
        Redrive::Open { generation } => Found::Open(generation as u8),
        Redrive::Resolved => Found::Resolved,
        Redrive::NotDead => Found::NotDead,
    };
    let agree = claims_agree && our_redrive == their_redrive && same(ours, &theirs);
    if !agree {
        report(&format!(
            "generation {generation} finds {record:?}: {our_claim:?} and {our_redrive:?} in the model"
        ));
        report(&format!(" {their_claim:?} and {their_redrive:?} in the library"));
    }
    agree
}

/// Every request of a claim. The inbox's commit is a store's own statement, which its conformance suite covers.
fn requests_of(id: ClaimId) -> [Request; 7] {
    [
        Request::Claim { token: id.token },
        Request::Started(id),
        Request::Complete(id),
        Request::Fail(id),
        Request::Release(id),
        Request::Renew(id),
        Request::MarkDead(id),
    ]
}

fn agrees(record: &Record, request: Request, fence: u8, rules: Rules) -> bool {
    let mut ours = *record;
    let our_answer = ours.apply(request, fence, rules);
    let mut theirs = concrete(record);
    let their_answer = ask(&mut theirs, request, fence, rules);
    let same = our_answer == their_answer && ours == abstracted(&theirs);
    if !same {
        report(&format!("{request:?} finds {record:?}\n model:   {our_answer:?}, {ours:?}"));
        report(&format!(" library: {their_answer:?}, {:?}", abstracted(&theirs)));
    }
    same
}

/// The library's record for the model's. The clock is at 0: a lease that ends there is over.
fn concrete(record: &Record) -> library::Record {
    if *record == Record::default() {
        return library::Record::nothing();
    }
    library::Record {
        state: state_of(record.stage),
        started: record.started,
        owner: owner(record.by.token),
        fence: record.by.fence.into(),
        attempts: record.attempts.into(),
        lost: record.lost.into(),
        lease_until: if record.is_claimed() && !record.lapsed { library::micros(LEASE) } else { 0 },
        ttl: library::micros(TTL),
        ..library::Record::nothing()
    }
}

fn state_of(stage: Stage) -> KeyState {
    match stage {
        Stage::Absent => KeyState::Absent,
        Stage::Pending => KeyState::Pending,
        Stage::Failed => KeyState::Failed,
        Stage::Terminal => KeyState::Terminal,
        Stage::Completed => KeyState::Completed,
        Stage::Dead => KeyState::Dead,
    }
}

/// What of the library's record the model knows.
fn abstracted(record: &library::Record) -> Record {
    let by = ClaimId { token: record.owner.as_bytes()[0], fence: record.fence as u8 };
    let stage = match record.state {
        KeyState::Absent => Stage::Absent,
        KeyState::Pending => Stage::Pending,
        KeyState::Failed => Stage::Failed,
        KeyState::Terminal => Stage::Terminal,
        KeyState::Completed => Stage::Completed,
        KeyState::Dead => Stage::Dead,
    };
    if record.is_expired(0) {
        return Record::default();
    }
    let settled = Record { stage, by, ..Record::default() };
    if matches!(stage, Stage::Completed | Stage::Dead) {
        // Attempts and losses of a settled key are of no more interest.
        return settled;
    }
    Record {
        lapsed: settled.is_claimed() && record.lease_until == 0,
        started: record.started,
        attempts: record.attempts as u8,
        lost: record.lost > 0,
        ..settled
    }
}

fn owner(token: u8) -> OwnerToken {
    OwnerToken::from_bytes([token; 16])
}

/// Puts the model's request to the library, and its answer into the model's words.
fn ask(record: &mut library::Record, request: Request, fence: u8, rules: Rules) -> Answer {
    let at = Moment { now: 0, fence_floor: u64::from(fence) - 1 };
    let id = request.claim();
    let lease = Lease { key: KEY, owner: owner(id.token), fence: id.fence.into() };
    match request {
        Request::Claim { .. } => {
            let terms = ClaimTerms { lease: LEASE, max_attempts: rules.max_attempts.into(), ttl: TTL };
            let request = ClaimRequest { key: KEY, owner: lease.owner, fingerprint: None, generation: 0 };
            claimed(record.claim(at, &terms, &request).answer)
        }
        Request::Complete(_) | Request::Commit(_) => {
            let request = CompleteRequest::new(lease, TTL);
            completed(record.complete(at, &request).answer)
        }
        Request::Started(_) | Request::Renew(_) => {
            let started = matches!(request, Request::Started(_));
            match record.renew(at, &RenewRequest { lease, lease_for: LEASE, started }).answer {
                Renewal::Renewed => Answer::Written,
                Renewal::Lost => Answer::Refused,
            }
        }
        Request::Fail(_) => {
            // It is the pipeline that knows the last attempt.
            let last = record.attempts + 1 >= u32::from(rules.max_attempts);
            let terminal = last.then_some(Reason::AttemptsExhausted);
            let step = record.fail(at, &FailRequest { lease, error: String::new(), terminal });
            failed(step, record.state)
        }
        Request::Release(_) => {
            let step = record.release(at, &lease);
            written(step.answer, step.changed)
        }
        Request::MarkDead(_) => {
            let step = record.bury(at, &BuryRequest { lease, ttl: TTL });
            written(step.answer == Burial::Dead, step.changed)
        }
    }
}

fn claimed(answer: Claim) -> Answer {
    match answer {
        Claim::Claimed(claimed) => {
            Answer::Claimed { fence: claimed.lease.fence as u8, was_lost: claimed.lost > 0 }
        }
        Claim::Exhausted(exhausted) => Answer::Exhausted { fence: exhausted.lease.fence as u8 },
        Claim::InProgress { .. } => Answer::InProgress,
        Claim::Completed { .. } | Claim::Dead { .. } => Answer::Settled,
        Claim::Mismatch => panic!("the model's messages have no fingerprints"),
    }
}

fn completed(answer: Completion) -> Answer {
    match answer {
        Completion::Completed | Completion::Inserted => Answer::Written,
        Completion::Repeated => Answer::Already,
        Completion::DoneByAnother => Answer::Settled,
        Completion::HeldByAnother => Answer::Refused,
    }
}

fn failed(step: Step<Failure>, state: KeyState) -> Answer {
    match (step.answer, state) {
        (Failure::Lost, _) => Answer::Refused,
        (Failure::Recorded { .. }, KeyState::Terminal) => Answer::LastAttempt,
        (Failure::Recorded { .. }, _) => written(true, step.changed),
    }
}

fn written(mine: bool, changed: bool) -> Answer {
    match (mine, changed) {
        (true, true) => Answer::Written,
        (true, false) => Answer::Already,
        (false, _) => Answer::Refused,
    }
}
