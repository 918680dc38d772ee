//! Crash points: numbered steps of the protocol at which a test can end or stop the process.
//!
//! They need the feature `failpoints` *and* a plan given at run time; without the feature passing a step does nothing.

/// The steps, in the order in which a message passes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A batch was received.
    Received,
    /// A claim is about to be sent.
    ClaimSent,
    /// A claim was answered.
    ClaimApplied,
    /// The handler is about to start.
    HandlerStart,
    /// The handler has returned.
    EffectDone,
    /// A completion is about to be sent.
    CompleteSent,
    /// A completion was answered.
    CompleteApplied,
    /// A failed run is about to be written.
    FailSent,
    /// A failed run was written.
    FailApplied,
    /// A dead letter is about to be published.
    LetterSent,
    /// A dead letter was confirmed.
    LetterConfirmed,
    /// The key was marked dead.
    Buried,
    /// Replies are about to be sent.
    ReplySent,
    /// Replies were confirmed or refused.
    ReplyApplied,
    /// Settlements are about to be sent.
    AckSent,
    /// Settlements were answered.
    AckApplied,
    /// A renewal is about to be sent.
    RenewSent,
    /// Unstarted claims are about to be released.
    ReleaseSent,
    /// A transaction was opened.
    Begun,
    /// The completion is about to be committed with its effect.
    CommitSent,
    /// The transaction was committed.
    Committed,
    /// Rows of the outbox were taken and are about to be published.
    RelayTaken,
    /// Rows of the outbox were published, and the outcome is not noted yet.
    RelayConfirmed,
    /// What became of rows of the outbox was noted.
    RelayMarked,
}

impl Step {
    /// The steps of a relay, which are no message's.
    pub const RELAY: [Self; 3] = [Self::RelayTaken, Self::RelayConfirmed, Self::RelayMarked];

    /// The steps of a reply, which not every pipeline sends.
    pub const REPLY: [Self; 2] = [Self::ReplySent, Self::ReplyApplied];

    /// All steps of a message.
    pub const ALL: [Self; 19] = [
        Self::Received,
        Self::ClaimSent,
        Self::ClaimApplied,
        Self::HandlerStart,
        Self::EffectDone,
        Self::CompleteSent,
        Self::CompleteApplied,
        Self::FailSent,
        Self::FailApplied,
        Self::LetterSent,
        Self::LetterConfirmed,
        Self::Buried,
        Self::AckSent,
        Self::AckApplied,
        Self::RenewSent,
        Self::ReleaseSent,
        Self::Begun,
        Self::CommitSent,
        Self::Committed,
    ];

    /// The name used in plans.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::ClaimSent => "claim-sent",
            Self::ClaimApplied => "claim-applied",
            Self::HandlerStart => "handler-start",
            Self::EffectDone => "effect-done",
            Self::CompleteSent => "complete-sent",
            Self::CompleteApplied => "complete-applied",
            Self::FailSent => "fail-sent",
            Self::FailApplied => "fail-applied",
            Self::LetterSent => "letter-sent",
            Self::LetterConfirmed => "letter-confirmed",
            Self::Buried => "buried",
            Self::ReplySent => "reply-sent",
            Self::ReplyApplied => "reply-applied",
            Self::AckSent => "ack-sent",
            Self::AckApplied => "ack-applied",
            Self::RenewSent => "renew-sent",
            Self::ReleaseSent => "release-sent",
            Self::Begun => "begun",
            Self::CommitSent => "commit-sent",
            Self::Committed => "committed",
            Self::RelayTaken => "relay-taken",
            Self::RelayConfirmed => "relay-confirmed",
            Self::RelayMarked => "relay-marked",
        }
    }
}

/// Passes a step. Does nothing unless a plan names it.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn hit(_step: Step) {}

#[cfg(feature = "failpoints")]
pub use planned::arm;
#[cfg(feature = "failpoints")]
pub(crate) use planned::hit;

#[cfg(feature = "failpoints")]
mod planned {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::Step;

    struct FailpointPlan {
        step: Step,
        action: Action,
        left: AtomicU32,
    }

    enum Action {
        Abort,
        Panic,
        Hang,
    }

    static PLAN: OnceLock<FailpointPlan> = OnceLock::new();

    /// Takes a plan `STEP:N:ACTION`: at the Nth passing of the step, `abort` the process (no destructor runs),
    /// `panic`, or `hang` the thread forever. Only the first plan of a process counts.
    ///
    /// # Errors
    /// A sentence naming the part that is wrong.
    pub fn arm(plan: &str) -> Result<(), String> {
        let mut parts = plan.splitn(3, ':');
        let name = parts.next().unwrap_or_default();
        let step = Step::ALL
            .into_iter()
            .chain(Step::REPLY)
            .chain(Step::RELAY)
            .find(|step| step.name() == name)
            .ok_or_else(|| format!("no crash point is called \"{name}\""))?;
        let left = parts
            .next()
            .and_then(|count| count.parse().ok())
            .filter(|count| *count > 0)
            .ok_or("a crash point's count is a number from 1")?;
        let action = match parts.next() {
            Some("abort") => Action::Abort,
            Some("panic") => Action::Panic,
            Some("hang") => Action::Hang,
            _ => return Err("a crash point's action is abort, panic or hang".into()),
        };
        let _ = PLAN.set(FailpointPlan { step, action, left: AtomicU32::new(left) });
        Ok(())
    }

    pub(crate) fn hit(step: Step) {
        let Some(plan) = PLAN.get().filter(|plan| plan.step == step) else { return };
        if plan.left.fetch_sub(1, Ordering::Relaxed) != 1 {
            return;
        }
        match plan.action {
            Action::Abort => std::process::abort(),
            Action::Panic => panic!("crash point {}", step.name()),
            Action::Hang => loop {
                std::thread::park();
            },
        }
    }
}
