//! Planted bugs: each breaks one rule in one place, and the checker must notice.
//!
//! Every test also explores the sound protocol within the same bounds, so that the counterexample is the bug's alone.

use crate::check::{explore_all, must_find};
use crate::model::Bounds;
use crate::model::Fault::{self, *};
use crate::properties::*;
use crate::state::State;
use crate::worker::Level::{self, Deduplicated, EffectivelyOnce};

/// One rule broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// Complete compares the state, but neither owner nor fence.
    CompleteUnfenced,
    /// A key in progress elsewhere is acked as a duplicate.
    InProgressAcked,
    /// Renew does not look at the state: a completed key gets the lease's life.
    RenewIgnoresState,
    /// Renew does not compare the owner.
    RenewIgnoresOwner,
    /// Release does not compare the owner.
    ReleaseIgnoresOwner,
    /// The write of a failed attempt does not compare the owner.
    FailIgnoresOwner,
    /// The key is marked completed before the handler runs.
    MarkBeforeHandler,
    /// The message is acked before its completion is written.
    AckBeforeComplete,
    /// A completion that finds the key absent is refused.
    CompleteOnAbsentRefused,
    /// A claim whose reply was lost is sent again with another token.
    ClaimRetriedWithNewToken,
    /// The inbox compares owner and fence, but not that the claim is still pending.
    InboxIgnoresState,
    /// One token for all claims of a worker.
    TokenPerWorker,
    /// The deadline is not looked at before the handler starts.
    StartsAfterDeadline,
    /// A completion whose reply was lost is taken for failed, and the claim released.
    ReleaseAfterComplete,
    /// The key is marked dead before its dead letter is published.
    DeadBeforePublish,
    /// A lapse after the `started` write counts no attempt.
    LapseAfterStartedNotCounted,
    /// The lease is the key's expiry: a lapsed claim vanishes with its attempts.
    LeaseIsTheKeysExpiry,
    /// A run that found the handler unavailable is written as a failed one.
    UnavailableUsesAnAttempt,
    /// The message of such a run is acked.
    UnavailableIsAcked,
    /// The commit of an effect with its completion does not wait for the disk.
    CommitNotSynced,
    /// Neither does the claim of a run whose effect is outside.
    PlainClaimNotSynced,
}

/// The sound protocol keeps every property within these bounds; with the bug it breaks these.
fn breaks(bug: Bug, bounds: Bounds, properties: &[&'static str]) {
    explore_all(bounds.clone(), State::representative);
    must_find(Bounds { bug: Some(bug), ..bounds }, properties);
}

/// Two workers and two copies of one key, where only these faults happen, each once at most on average.
fn among(level: Level, allowed: &'static [Fault]) -> Bounds {
    Bounds { allowed, ..Bounds::new(level, allowed.len() as u8) }
}

const ONE_MESSAGE: &[u8] = &[0];

#[test]
fn complete_without_fence_completes_the_new_owners_claim() {
    breaks(Bug::CompleteUnfenced, among(Deduplicated, &[Pause]), &[OWN_CLAIM_ONLY]);
    breaks(Bug::CompleteUnfenced, among(EffectivelyOnce, &[Pause]), &[OWN_CLAIM_ONLY]);
}

#[test]
fn an_inbox_that_ignores_the_state_commits_twice() {
    breaks(Bug::InboxIgnoresState, among(EffectivelyOnce, &[LostReply]), &[ONE_EFFECT]);
}

#[test]
fn acking_a_key_in_progress_acks_before_any_completion() {
    breaks(Bug::InProgressAcked, among(Deduplicated, &[]), &[ACK_RULE, NOTHING_LOST]);
    breaks(Bug::InProgressAcked, among(EffectivelyOnce, &[]), &[ACK_RULE, NOTHING_LOST]);
}

#[test]
fn acking_a_key_in_progress_loses_the_message_when_its_holder_dies() {
    let one_message = Bounds { messages: ONE_MESSAGE, ..among(Deduplicated, &[TakeBack, Crash]) };
    breaks(Bug::InProgressAcked, one_message, &[SETTLES]);
}

#[test]
fn renew_after_complete_cuts_the_ttl_and_repeats_the_effect() {
    breaks(Bug::RenewIgnoresState, among(Deduplicated, &[Delay]), &[TTL_KEPT, ONE_EFFECT]);
    breaks(Bug::RenewIgnoresState, among(EffectivelyOnce, &[Delay]), &[TTL_KEPT, ONE_EFFECT]);
}

#[test]
fn a_zombies_renewal_without_owner_prolongs_anothers_claim() {
    let bounds = Bounds { faults: 3, ..among(Deduplicated, &[Delay, Pause, Crash]) };
    breaks(Bug::RenewIgnoresOwner, bounds, &[OWN_CLAIM_ONLY]);
}

#[test]
fn a_zombies_release_without_owner_frees_anothers_claim_and_repeats_the_effect() {
    breaks(Bug::ReleaseIgnoresOwner, among(Deduplicated, &[Pause]), &[OWN_CLAIM_ONLY, ONE_EFFECT]);
}

#[test]
fn a_zombies_failure_without_owner_ends_anothers_claim() {
    breaks(Bug::FailIgnoresOwner, among(Deduplicated, &[Pause]), &[OWN_CLAIM_ONLY]);
}

#[test]
fn marking_before_the_handler_loses_the_message_of_a_handler_that_fails_once() {
    breaks(Bug::MarkBeforeHandler, among(Deduplicated, &[HandlerFails]), &[NOTHING_LOST, SETTLES]);
}

#[test]
fn acking_before_the_completion_breaks_the_ack_rule() {
    breaks(Bug::AckBeforeComplete, among(Deduplicated, &[]), &[ACK_RULE]);
}

#[test]
fn acking_before_the_commit_loses_the_message_of_a_worker_that_dies() {
    let one_message = Bounds { messages: ONE_MESSAGE, ..among(EffectivelyOnce, &[Crash]) };
    breaks(Bug::AckBeforeComplete, one_message, &[ACK_RULE, NOTHING_LOST, SETTLES]);
}

#[test]
fn refusing_a_completion_on_an_absent_key_repeats_the_effect() {
    breaks(Bug::CompleteOnAbsentRefused, among(Deduplicated, &[Forget]), &[ONE_EFFECT]);
}

#[test]
fn retrying_a_claim_with_a_new_token_waits_for_itself_until_its_own_claim_lapses() {
    breaks(Bug::ClaimRetriedWithNewToken, among(Deduplicated, &[LostReply]), &[LOST_REPLY_HARMLESS]);
}

#[test]
fn one_token_per_worker_lets_two_of_its_lanes_run_one_key() {
    let two_lanes = Bounds { worker_of: [0, 0], ..among(Deduplicated, &[]) };
    breaks(Bug::TokenPerWorker, two_lanes, &[ONE_EFFECT]);
}

#[test]
fn starting_after_the_deadline_starts_without_a_claim() {
    breaks(Bug::StartsAfterDeadline, among(Deduplicated, &[Pause]), &[STARTS_WITH_CLAIM]);
}

#[test]
fn releasing_after_a_complete_of_unknown_outcome_repeats_the_effect() {
    breaks(Bug::ReleaseAfterComplete, among(Deduplicated, &[Delay]), &[ONE_EFFECT]);
}

#[test]
fn marking_dead_before_the_dead_letter_is_out_loses_the_message() {
    let one_attempt =
        Bounds { messages: ONE_MESSAGE, max_attempts: 1, ..among(Deduplicated, &[HandlerFails, Crash]) };
    breaks(Bug::DeadBeforePublish, one_attempt, &[ACK_RULE, NOTHING_LOST, SETTLES]);
}

#[test]
fn a_process_killer_goes_on_running_if_its_lapses_count_no_attempt() {
    breaks(Bug::LapseAfterStartedNotCounted, process_killer(), &[RUNS_BOUNDED]);
}

#[test]
fn a_process_killer_goes_on_running_if_the_lease_is_the_keys_expiry() {
    breaks(Bug::LeaseIsTheKeysExpiry, process_killer(), &[RUNS_BOUNDED]);
}

#[test]
fn an_unavailable_handler_that_uses_attempts_dead_letters_messages_that_never_failed() {
    for level in [Deduplicated, EffectivelyOnce] {
        let bounds = among(level, &[HandlerUnavailable, HandlerFails, LostReply]);
        breaks(Bug::UnavailableUsesAnAttempt, bounds.clone(), &[ATTEMPTS_ARE_FAILURES, LETTERS_ARE_FAILURES]);
        let one_attempt = Bounds { max_attempts: 1, faults: 1, ..bounds };
        breaks(Bug::UnavailableUsesAnAttempt, one_attempt, &[ATTEMPTS_ARE_FAILURES, LETTERS_ARE_FAILURES]);
    }
}

#[test]
fn acking_the_message_of_an_unavailable_handler_loses_it() {
    let bounds = Bounds { messages: ONE_MESSAGE, ..among(Deduplicated, &[HandlerUnavailable]) };
    breaks(Bug::UnavailableIsAcked, bounds, &[ACK_RULE, NOTHING_LOST, SETTLES]);
}

#[test]
fn a_commit_that_does_not_wait_for_the_disk_loses_the_effect_of_an_acked_message() {
    let one_message = Bounds { messages: ONE_MESSAGE, ..among(EffectivelyOnce, &[StoreCrash]) };
    breaks(Bug::CommitNotSynced, one_message, &[NOTHING_LOST, SETTLES]);
}

#[test]
fn the_claim_of_a_plain_run_that_does_not_wait_for_the_disk_repeats_the_effect() {
    breaks(Bug::PlainClaimNotSynced, among(Deduplicated, &[StoreCrash]), &[ONE_EFFECT]);
}

fn process_killer() -> Bounds {
    Bounds { messages: ONE_MESSAGE, max_attempts: 1, ..among(Deduplicated, &[Crash, Crash]) }
}
