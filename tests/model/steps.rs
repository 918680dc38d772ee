//! Applies actions to a state.

use crate::bugs::Bug;
use crate::model::{Action, Bounds};
use crate::record::{Answer, ClaimId, Record, Request, Stage};
use crate::state::{Ghost, KEYS, LANES, Late, Place, State};
use crate::worker::{Lane, Level, Next, Phase};

impl Bounds {
    pub(crate) fn step(&self, state: &mut State, action: Action) {
        match action {
            Action::Receive { lane, message } => {
                let token = self.mint(state, lane);
                let key = state.messages[message].key;
                state.messages[message].at = Place::Held(lane as u8);
                let claim = ClaimId { token, fence: 0 };
                state.lanes[lane] =
                    Lane { phase: Phase::Claiming, key, message: message as u8, claim, ..Lane::default() };
            }
            Action::Asked { lane } => {
                let request = self.request(state, lane);
                let answer = self.apply(state, state.lanes[lane].key, request);
                if state.lanes[lane].hear(answer, self.rules()) == Next::Return {
                    state.return_message(lane);
                }
            }
            Action::ReplyLost { lane } => {
                let request = self.request(state, lane);
                self.apply(state, state.lanes[lane].key, request);
                self.hear_nothing(state, lane);
            }
            Action::RequestDelayed { lane } => {
                self.leave_behind(state, lane, self.request(state, lane));
                self.hear_nothing(state, lane);
            }
            Action::RenewalDelayed { lane } => {
                self.leave_behind(state, lane, Request::Renew(state.lanes[lane].claim));
            }
            Action::LateRequestArrives => {
                if let Some(Late { key, request }) = state.late.take() {
                    self.apply(state, key, request);
                }
            }
            Action::HandlerStarts { lane } | Action::RunAgain { lane } => self.start_handler(state, lane),
            Action::AskAgain { lane } => {
                state.lanes[lane].ask_again();
                state.ghost(lane).runs_left += 1;
            }
            Action::HandlerSucceeds { lane } => self.finish_handler(state, lane),
            Action::HandlerFails { lane } | Action::HandlerCancelled { lane } => {
                state.lanes[lane].phase = Phase::Failing;
            }
            Action::HandlerUnavailable { lane } => self.excuse_handler(state, lane),
            Action::ReleaseUnstarted { lane } => state.lanes[lane].phase = Phase::Releasing,
            Action::Park { lane } | Action::Abandon { lane } => state.return_message(lane),
            Action::Publish { lane } => {
                state.ghost(lane).has_letter = true;
                state.lanes[lane].published(self.rules());
            }
            Action::ConfirmLost { lane } => state.ghost(lane).has_letter = true,
            Action::Ack { lane } => {
                self.ack(state, lane);
                state.lanes[lane] = Lane::default();
            }
            Action::AckLost { lane } => state.return_message(lane),
            Action::DeadlinePasses { lane } => state.lanes[lane].overdue = true,
            Action::LeaseLapses { key } => state.records[key].lapse(self.rules()),
            Action::TakeBack { message } => state.messages[message].at = Place::Ready,
            Action::Crash { worker, in_flight } => self.crash(state, worker, in_flight),
            Action::Forget { key } => self.vanish(state, key),
            Action::Expire { key } => self.vanish(state, key),
            Action::StoreCrash => self.crash_store(state),
        }
    }

    fn request(&self, state: &State, lane: usize) -> Request {
        state.lanes[lane].request(self.level).expect("only asking phases ask")
    }

    /// A token is fresh for every claim.
    fn mint(&self, state: &mut State, lane: usize) -> u8 {
        if self.has(Bug::TokenPerWorker) { self.worker_of[lane] + 1 } else { state.fresh_token() }
    }

    fn hear_nothing(&self, state: &mut State, lane: usize) {
        let fresh = if self.has(Bug::ClaimRetriedWithNewToken) { state.fresh_token() } else { 0 };
        state.lanes[lane].hear_nothing(self.level, fresh, self.rules());
    }

    fn leave_behind(&self, state: &mut State, lane: usize, request: Request) {
        state.late = Some(Late { key: state.lanes[lane].key, request });
    }

    /// The store applies one request; the properties look on.
    fn apply(&self, state: &mut State, key: u8, request: Request) -> Answer {
        let key = key as usize;
        let before = state.records[key];
        let fence = state.next_fence;
        let answer = state.records[key].apply(request, fence, self.rules());
        let after = state.records[key];

        let granted = after.by.fence == fence;
        state.next_fence += u8::from(granted);
        let overlaps = granted && state.has_a_run(key);
        let ghost = &mut state.ghosts[key];
        ghost.excused |= overlaps && (before.stage == Stage::Pending || ghost.claim_forgotten);
        ghost.was_completed |= after.stage == Stage::Completed;
        if matches!(request, Request::Commit(_)) && answer == Answer::Written {
            ghost.add_effect();
        }
        let of_another = match request {
            Request::Claim { token } => before.by.token != token && !before.lapsed,
            _ => before.by != request.claim(),
        };
        ghost.touched_by_another |= before.is_claimed() && of_another && after != before;
        answer
    }

    fn start_handler(&self, state: &mut State, lane: usize) {
        let here = state.lanes[lane];
        let record = state.record(lane);
        // A commit in doubt may land before its handler starts again: that second run is then rolled back.
        let mine = record.is_live_claim_of(here.claim) || record.is_completed_by(here.claim);
        state.lanes[lane].phase = Phase::Running;
        let ghost = state.ghost(lane);
        if ghost.claim_forgotten {
            ghost.excused |= !mine;
        } else {
            ghost.started_without_claim |= !mine;
        }
        // After a commit in doubt it is the same attempt that runs again.
        ghost.runs_left -= i8::from(here.phase == Phase::Claimed);
    }

    fn finish_handler(&self, state: &mut State, lane: usize) {
        state.lanes[lane].phase = Phase::Completing;
        if self.level == Level::Deduplicated {
            state.ghost(lane).add_effect();
        }
        if self.has(Bug::AckBeforeComplete) {
            self.ack(state, lane);
        }
    }

    /// The claim is released as it was before the run, which counts neither as an attempt nor as a lapse.
    fn excuse_handler(&self, state: &mut State, lane: usize) {
        state.ghost(lane).runs_left += 1;
        if self.has(Bug::UnavailableIsAcked) {
            self.ack(state, lane);
        }
        let fails = self.has(Bug::UnavailableUsesAnAttempt);
        state.lanes[lane].phase = if fails { Phase::Failing } else { Phase::Releasing };
    }

    /// An ack with an old receipt may still delete the message: brokers differ, so it does here.
    fn ack(&self, state: &mut State, lane: usize) {
        state.message(lane).at = Place::Acked;
        let ghost = state.ghost(lane);
        ghost.acked_unsettled |= !ghost.was_completed && !ghost.has_letter;
    }

    fn crash(&self, state: &mut State, worker: u8, in_flight: Option<usize>) {
        if let Some(lane) = in_flight {
            self.leave_behind(state, lane, self.request(state, lane));
        }
        for lane in (0..LANES).filter(|lane| self.worker_of[*lane] == worker) {
            if state.has_uncompleted_effect(lane, self.level) {
                state.ghost(lane).excused = true;
            }
            state.return_message(lane);
        }
    }

    /// The connections to the store end with it, and so do their requests and transactions: a worker's commit arrives on a new one.
    fn crash_store(&self, state: &mut State) {
        state.late = None;
        for key in 0..KEYS {
            let record = state.records[key];
            if !self.is_unsynced(&record) {
                continue;
            }
            if record.stage == Stage::Completed {
                // The effect is lost with its completion.
                let ghost = &mut state.ghosts[key];
                (ghost.effects, ghost.had_effect) = (0, false);
                state.records[key] = Record::default();
            } else if self.level == Level::EffectivelyOnce {
                self.vanish(state, key);
            } else {
                // No excuse for a second effect.
                state.records[key] = Record::default();
            }
        }
    }

    fn vanish(&self, state: &mut State, key: usize) {
        let record = std::mem::take(&mut state.records[key]);
        let unaware = record.stage == Stage::Pending || state.is_kept_alive(record.by);
        let ghost = &mut state.ghosts[key];
        ghost.claim_forgotten |= unaware;
        ghost.runs_left = Ghost::new(self.max_attempts).runs_left;
        if record.stage == Stage::Completed {
            ghost.effects = 0;
        }
    }
}
