//! Properties: invariants of every state, and what must be reachable for them to mean anything.

use stateright::{Model, Property};

use crate::model::Bounds;
use crate::state::{Ghost, Place, State};
use crate::worker::Level;

/// An acked message has an effect or a dead letter (I1).
pub(crate) const NOTHING_LOST: &str = "an acked message has an effect or a dead letter";
/// Where nothing more can happen, every message is settled. Every path ends (see `termination.rs`), so every message settles.
pub(crate) const SETTLES: &str = "every message is settled in the end";
/// Rule 1, I6.
pub(crate) const ACK_RULE: &str = "an ack follows a completion or a dead letter";
/// I2. `deduplicated`: unless an owner died between effect and completion, or lost its claim during the run.
pub(crate) const ONE_EFFECT: &str = "at most one effect in the TTL";
/// A late write never changes a claim that is another's.
pub(crate) const OWN_CLAIM_ONLY: &str = "a claim is changed by its owner only";
/// Rule 3. A claim that was forgotten is the exception: its owner cannot know.
pub(crate) const STARTS_WITH_CLAIM: &str = "a handler starts on a live claim of its own";
pub(crate) const TTL_KEPT: &str = "a completed key keeps its TTL";
/// The one more is the first lapse: only after it is every run preceded by a `started` write.
pub(crate) const RUNS_BOUNDED: &str = "the handler runs at most once more than its attempts";
/// Only runs that failed for a reason of the message's use attempts. Lapses may count as well, so that this is said of paths
/// without any.
pub(crate) const ATTEMPTS_ARE_FAILURES: &str = "an attempt is used by a failed run only";
/// As above, of its end: an unavailable handler makes no dead letters.
pub(crate) const LETTERS_ARE_FAILURES: &str =
    "a dead letter follows as many failed runs as there are attempts";
/// Rule 4.
pub(crate) const LOST_REPLY_HARMLESS: &str = "lost replies alone lose no claim";

/// The properties of the correct protocol.
pub(crate) fn safety() -> Vec<Property<Bounds>> {
    vec![
        Property::always(NOTHING_LOST, |_, state: &State| {
            !state
                .messages
                .iter()
                .any(|message| message.at == Place::Acked && !state.is_accounted_for(message))
        }),
        Property::always(SETTLES, |model: &Bounds, state: &State| {
            if state.is_settled() {
                return true;
            }
            let mut steps = Vec::new();
            model.actions(state, &mut steps);
            !steps.is_empty()
        }),
        Property::always(ACK_RULE, |_, state: &State| every_key(state, |ghost| !ghost.acked_unsettled)),
        Property::always(ONE_EFFECT, |model: &Bounds, state: &State| {
            let excusable = model.level == Level::Deduplicated;
            every_key(state, |ghost| ghost.effects <= 1 || excusable && ghost.excused)
        }),
        Property::always(OWN_CLAIM_ONLY, |_, state: &State| {
            every_key(state, |ghost| !ghost.touched_by_another)
        }),
        Property::always(STARTS_WITH_CLAIM, |_, state: &State| {
            every_key(state, |ghost| !ghost.started_without_claim)
        }),
        Property::always(TTL_KEPT, |_, state: &State| state.records.iter().all(|record| !record.short_lived)),
        Property::always(RUNS_BOUNDED, |_, state: &State| {
            every_key(state, |ghost| ghost.runs_left >= 0 || ghost.claim_forgotten)
        }),
        Property::always(ATTEMPTS_ARE_FAILURES, |model: &Bounds, state: &State| {
            let mut keys = state.records.iter().zip(&state.ghosts);
            state.disturbed || keys.all(|(record, ghost)| record.attempts as i8 <= charged(model, ghost))
        }),
        Property::always(LETTERS_ARE_FAILURES, |model: &Bounds, state: &State| {
            let needed = model.max_attempts as i8;
            let earned = |ghost: &Ghost| !ghost.has_letter || charged(model, ghost) >= needed;
            state.disturbed || every_key(state, earned)
        }),
        Property::always(LOST_REPLY_HARMLESS, |_, state: &State| {
            state.disturbed || state.records.iter().all(|record| !record.lost)
        }),
    ]
}

/// Runs that have started and did not find the handler unavailable.
fn charged(model: &Bounds, ghost: &Ghost) -> i8 {
    Ghost::new(model.max_attempts).runs_left - ghost.runs_left
}

fn every_key(state: &State, holds: impl Fn(&Ghost) -> bool) -> bool {
    state.ghosts.iter().all(holds)
}
