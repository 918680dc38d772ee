//! Outcomes that need no write.

use std::time::Duration;

use crate::pipeline::context::Context;
use crate::pipeline::limits::LONGEST;
use crate::pipeline::work::{Finished, Recorded, Verdict, Work};
use crate::telemetry::Counter;

/// Counts a write that was refused because another claim holds the key.
pub(super) fn log_fenced<R>(context: &Context<R>, work: &Work) {
    context.count(Counter::Fenced, 1);
    tracing::info!(
        scope = %context.scope, key = work.log_key(), origin = work.message.origin(),
        position = work.log_position(), message_id = work.log_id(),
        "run fenced: another claim holds its key; the next claim of the message resolves it"
    );
}

pub(super) fn decided(finished: Finished, verdict: Verdict) -> Recorded {
    if let Some(claim) = &finished.claim {
        claim.end();
    }
    Recorded { work: finished.work, verdict }
}

/// Another claim holds the key, or the outcome is unknown, or there was no run: the next claim decides.
pub(super) fn ask_again<R>(context: &Context<R>, mut finished: Finished) -> Recorded {
    let pause = context.pause(Duration::from_millis(50), finished.work.holds, Duration::from_secs(5));
    finished.work.holds = finished.work.holds.saturating_add(1);
    let asked = std::mem::take(&mut finished.work.not_before);
    let after = pause.max(asked).min(LONGEST);
    decided(finished, Verdict::Again { after })
}
