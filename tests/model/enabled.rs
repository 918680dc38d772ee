//! Decides which actions can happen in a state.

use crate::bugs::Bug;
use crate::model::{Action, Bounds, Fault};
use crate::record::{Answer, Record, Stage};
use crate::state::{LANES, MESSAGES, Place, State};
use crate::worker::{Level, Phase};

impl Bounds {
    fn may(&self, state: &State, fault: Fault) -> bool {
        state.faults_left > 0 && self.allowed.contains(&fault)
    }

    /// What lanes do without any fault.
    pub(crate) fn lane_steps(&self, state: &State, lane: usize, actions: &mut Vec<Action>) {
        let here = &state.lanes[lane];
        match here.phase {
            Phase::Idle => {
                // Of two waiting copies of one key either would do: take the first.
                let ready = |index: &usize| state.messages[*index].at == Place::Ready;
                let twin = |index: &usize| {
                    *index == 1 && ready(&0) && state.messages[0].key == state.messages[1].key
                };
                let waiting = (0..MESSAGES).filter(|index| ready(index) && !twin(index));
                actions.extend(waiting.map(|message| Action::Receive { lane, message }));
            }
            // Asking again while the key is in progress elsewhere changes nothing: the lane asks once that is over.
            Phase::Claiming if self.is_blocked(state, lane) && !self.has(Bug::InProgressAcked) => {}
            Phase::Claimed => {
                if !here.overdue || self.has(Bug::StartsAfterDeadline) {
                    actions.push(Action::HandlerStarts { lane });
                }
                if here.overdue {
                    actions.push(Action::ReleaseUnstarted { lane });
                }
            }
            Phase::Running => {
                // Also when overdue: a zombie's handler is past every check.
                actions.push(Action::HandlerSucceeds { lane });
                if here.overdue {
                    actions.push(Action::HandlerCancelled { lane });
                }
            }
            Phase::InDoubt => {
                let act = if here.overdue { Action::Abandon { lane } } else { Action::RunAgain { lane } };
                actions.extend([act, Action::AskAgain { lane }]);
            }
            Phase::Publishing => actions.push(Action::Publish { lane }),
            Phase::Acking => {
                actions.push(Action::Ack { lane });
                if !state.receipt_is_good(lane) {
                    actions.push(Action::AckLost { lane });
                }
            }
            Phase::Claiming
            | Phase::Starting
            | Phase::Completing
            | Phase::Failing
            | Phase::Releasing
            | Phase::MarkingDead => actions.push(Action::Asked { lane }),
        }
    }

    fn is_blocked(&self, state: &State, lane: usize) -> bool {
        let token = state.lanes[lane].claim.token;
        state.record(lane).would_answer(token, self.rules()) == Answer::InProgress
    }

    /// What may go wrong around a lane.
    pub(crate) fn lane_faults(&self, state: &State, lane: usize, actions: &mut Vec<Action>) {
        let here = &state.lanes[lane];
        if here.is_idle() || state.faults_left == 0 {
            return;
        }
        let blocked = here.phase == Phase::Claiming && self.is_blocked(state, lane);
        let asks = here.request(self.level).is_some() && !blocked;
        let quiet = state.late.is_none();
        let mut offer = |possible: bool, action: Action| {
            if possible && self.fault_of(state, action).is_some_and(|fault| self.may(state, fault)) {
                actions.push(action);
            }
        };
        offer(asks, Action::ReplyLost { lane });
        offer(asks && quiet, Action::RequestDelayed { lane });
        offer(here.holds_a_claim() && !here.overdue && quiet, Action::RenewalDelayed { lane });
        offer(here.holds_a_claim() && !here.overdue, Action::DeadlinePasses { lane });
        offer(here.phase == Phase::Running, Action::HandlerFails { lane });
        offer(here.phase == Phase::Running, Action::HandlerUnavailable { lane });
        offer(here.phase == Phase::Claimed && !here.overdue, Action::ReleaseUnstarted { lane });
        offer(blocked, Action::Park { lane });
        offer(here.phase == Phase::Publishing, Action::ConfirmLost { lane });
        offer(here.phase == Phase::Acking && state.receipt_is_good(lane), Action::AckLost { lane });
    }

    pub(crate) fn broker_steps(&self, state: &State, actions: &mut Vec<Action>) {
        if self.may(state, Fault::TakeBack) {
            let held = (0..MESSAGES).filter(|index| matches!(state.messages[*index].at, Place::Held(_)));
            actions.extend(held.map(|message| Action::TakeBack { message }));
        }
        if self.may(state, Fault::Crash) {
            for worker in 0..=1 {
                let busy = |lane: &usize| self.worker_of[*lane] == worker && !state.lanes[*lane].is_idle();
                if !(0..LANES).any(|lane| busy(&lane)) {
                    continue;
                }
                actions.push(Action::Crash { worker, in_flight: None });
                let asks = |lane: &usize| busy(lane) && state.lanes[*lane].request(self.level).is_some();
                if state.late.is_none() {
                    let asking = (0..LANES).filter(asks);
                    actions.extend(asking.map(|lane| Action::Crash { worker, in_flight: Some(lane) }));
                }
            }
        }
    }

    pub(crate) fn store_steps(&self, state: &State, actions: &mut Vec<Action>) {
        if state.late.is_some() {
            actions.push(Action::LateRequestArrives);
        }
        if self.may(state, Fault::StoreCrash) && state.records.iter().any(|record| self.is_unsynced(record)) {
            actions.push(Action::StoreCrash);
        }
        for (key, record) in state.records.iter().enumerate() {
            if self.can_lapse(state, key) {
                actions.push(Action::LeaseLapses { key });
            }
            if record.stage != Stage::Absent && self.may(state, Fault::Forget) {
                actions.push(Action::Forget { key });
            }
            // The TTL is longer than any lease: the worker that wrote the record knows by now that its lease is over.
            let ttl_can_end =
                matches!(record.stage, Stage::Completed | Stage::Dead) && !state.is_kept_alive(record.by);
            if ttl_can_end && self.may(state, Fault::Expire) {
                actions.push(Action::Expire { key });
            }
        }
    }

    /// A lease expires by itself when its owner does not renew it. While its owner holds it, the owner's deadline passes first;
    /// while its owner does not know of it (the claim's reply was lost), it can expire as a fault.
    fn can_lapse(&self, state: &State, key: usize) -> bool {
        let record = &state.records[key];
        let runs = record.is_claimed() && !record.lapsed || record.short_lived;
        let mut keepers = state.lanes.iter().filter(|lane| lane.keeps_alive(record.by));
        runs && keepers.all(|lane| lane.phase == Phase::Claiming && self.may(state, Fault::Pause))
    }

    /// Whether a crash of the store loses this record. The first claim of a key is not synced where the completion commits with
    /// the effect; everything else is.
    pub(crate) fn is_unsynced(&self, record: &Record) -> bool {
        let first_claim =
            record.stage == Stage::Pending && !record.lost && !record.started && record.attempts == 0;
        let completion = record.stage == Stage::Completed && self.has(Bug::CommitNotSynced);
        let claims = self.level == Level::EffectivelyOnce || self.has(Bug::PlainClaimNotSynced);
        first_claim && claims || completion
    }

    /// The fault an action is, if it is one.
    pub(crate) fn fault_of(&self, state: &State, action: Action) -> Option<Fault> {
        match action {
            Action::ReplyLost { .. } | Action::ConfirmLost { .. } => Some(Fault::LostReply),
            Action::AckLost { lane } if state.receipt_is_good(lane) => Some(Fault::LostReply),
            Action::RequestDelayed { .. } | Action::RenewalDelayed { .. } => Some(Fault::Delay),
            Action::DeadlinePasses { .. } => Some(Fault::Pause),
            Action::LeaseLapses { key } => state.is_kept_alive(state.records[key].by).then_some(Fault::Pause),
            Action::HandlerFails { .. } => Some(Fault::HandlerFails),
            Action::HandlerUnavailable { .. } => Some(Fault::HandlerUnavailable),
            Action::ReleaseUnstarted { lane } if !state.lanes[lane].overdue => Some(Fault::GiveBack),
            Action::Park { .. } => Some(Fault::GiveBack),
            Action::TakeBack { .. } => Some(Fault::TakeBack),
            Action::Crash { .. } => Some(Fault::Crash),
            Action::Forget { .. } => Some(Fault::Forget),
            Action::Expire { .. } => Some(Fault::Expire),
            Action::StoreCrash => Some(Fault::StoreCrash),
            _ => None,
        }
    }
}
