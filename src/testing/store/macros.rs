//! Macros that generate one test for each check.

/// Makes one `#[tokio::test]` of each check of the [`Store`](crate::Store) contract. The argument is an expression that
/// makes a fresh [`StoreHarness`](crate::testing::store::StoreHarness); it may await. The calling crate needs `tokio`
/// with the features `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! store_conformance {
    ($harness:expr) => {
        $crate::conformance_tests! { $harness; claims:
            an_unknown_key_is_claimed_as_its_first_attempt,
            a_key_in_progress_is_not_claimed_by_another,
            a_lease_is_live_until_its_last_moment,
            a_lapsed_lease_is_taken_over_with_a_larger_fence,
            unstarted_lapses_are_counted_but_use_no_attempt,
            a_lapse_after_the_start_counts_as_an_attempt,
            lapses_of_started_runs_use_up_the_attempts,
            a_renewal_prolongs_the_lease_from_now,
            a_lapsed_lease_nobody_took_over_is_revived_by_a_renewal,
            a_release_changes_nothing_but_frees_the_key,
            a_record_outlives_its_lease,
            an_expired_unfinished_record_counts_as_absent,
            a_renewed_record_lives_as_long_after_its_new_lease,
        }
        $crate::conformance_tests! { $harness; repeats:
            a_repeated_claim_recognises_itself,
            a_claim_repeated_after_its_lease_is_a_new_claim,
            a_repeated_claim_of_an_exhausted_key_recognises_itself,
            a_repeated_completion_changes_nothing,
            a_repeated_renewal_renews,
            a_repeated_failure_counts_once,
            a_repeated_terminal_failure_counts_once,
            a_repeated_burial_finds_the_key_dead,
            a_repeated_release_answers_the_same,
        }
        $crate::conformance_tests! { $harness; fencing:
            a_claim_that_was_taken_over_can_write_nothing,
            the_fence_tells_two_claims_of_one_token_apart,
            every_write_needs_the_owner_token,
            every_write_needs_the_fence,
            every_write_needs_its_state,
            late_writes_leave_a_completed_key_alone,
            late_writes_leave_a_dead_key_alone,
            writes_of_an_unknown_key_change_nothing,
            writes_of_an_expired_record_change_nothing,
        }
        $crate::conformance_tests! { $harness; completions:
            a_claim_completes_its_key,
            a_completion_is_seen_by_another_worker,
            a_lapsed_claim_nobody_took_over_completes,
            a_later_attempt_completes,
            the_completion_of_a_forgotten_key_inserts_it,
            the_completion_of_an_expired_record_inserts_it,
            the_completion_of_a_free_key_inserts_it,
            a_key_completed_by_another_stays_the_others,
            a_key_dead_by_another_stays_dead,
            a_key_held_by_another_is_not_completed,
            results_are_replayed_byte_for_byte,
            the_run_of_a_completion_is_kept,
            the_ttl_counts_from_the_completion,
            a_completion_brings_its_own_ttl,
            a_renewal_never_touches_a_completed_key,
            a_very_long_ttl_is_kept,
        }
        $crate::conformance_tests! { $harness; failures:
            a_failure_counts_an_attempt_and_frees_the_key,
            a_failure_after_the_lease_counts_once,
            a_failed_record_expires_after_its_ttl,
            used_up_attempts_exhaust_the_key,
            the_limit_of_attempts_comes_with_the_claim,
            a_permanent_failure_leaves_no_further_attempt,
            every_reason_is_kept,
            a_buried_key_is_dead,
            a_dead_record_lives_for_the_burials_ttl,
            a_late_burial_nobody_forestalled_buries,
            a_long_error_is_cut_at_a_character,
            errors_may_hold_any_character,
        }
        $crate::conformance_tests! { $harness; redrives:
            a_redrive_opens_a_dead_key,
            the_dead_claim_cannot_write_after_a_redrive,
            a_repeated_redrive_finds_the_key_open,
            a_letter_is_resolved_once_its_redrive_has_completed,
            a_letter_is_resolved_once_its_redrive_has_died,
            what_is_not_dead_is_not_redriven,
            an_expired_dead_record_is_not_redriven,
            an_opened_key_nobody_claims_expires,
            a_claim_of_a_newer_generation_opens_a_dead_key,
            a_claim_of_a_newer_generation_opens_a_terminal_key,
            a_redrive_opens_a_terminal_key_whose_lease_is_over,
            a_claim_beyond_the_next_generation_finds_the_key_dead,
            a_claim_beyond_the_next_generation_opens_no_terminal_key,
            a_claim_beyond_the_next_generation_raises_no_generation,
            an_unknown_key_takes_any_possible_generation,
            a_copy_of_an_older_generation_finds_the_key_dead,
            a_newer_generation_does_not_open_a_completed_key,
        }
        $crate::conformance_tests! { $harness; mismatches:
            another_fingerprint_is_a_mismatch_in_every_state,
            another_fingerprint_takes_no_lapsed_lease_over,
            the_same_or_no_fingerprint_is_no_mismatch,
            the_first_fingerprint_of_a_later_claim_is_kept,
            a_redriven_key_takes_the_fingerprint_of_its_next_claim,
            a_newer_generation_brings_its_own_fingerprint,
            a_newer_generation_without_a_fingerprint_forgets_the_old_one,
            an_expired_record_mismatches_nothing,
        }
        $crate::conformance_tests! { $harness; batches:
            an_empty_batch_has_no_answers,
            claims_of_a_batch_are_answered_in_order,
            a_refused_write_does_not_fail_its_neighbours,
            a_batch_of_a_thousand_is_answered_in_order,
        }
        $crate::conformance_tests! { $harness; records:
            an_inspection_shows_the_record,
            records_are_listed_in_key_order,
            statistics_count_every_state,
            expired_records_are_neither_listed_nor_counted,
            a_purge_removes_expired_records_only,
            fences_grow_across_a_purge,
            a_forgotten_key_runs_again,
            an_expired_record_is_not_there_to_forget,
            fences_grow_across_a_forget,
            fences_grow_with_the_clock,
            scopes_are_apart,
        }
        $crate::conformance_tests! { threaded $harness; races:
            of_many_claimers_exactly_one_wins_each_key,
            claims_of_one_key_never_overlap,
            a_key_is_completed_exactly_once,
        }
    };
}

/// Makes one `#[tokio::test]` of each check of the [`CheckpointStore`](crate::adapter::CheckpointStore) contract; see
/// [`store_conformance!`](crate::store_conformance).
#[macro_export]
macro_rules! checkpoint_store_conformance {
    ($harness:expr) => {
        $crate::conformance_tests! { $harness; checkpoints:
            an_unknown_source_has_no_checkpoint,
            a_saved_checkpoint_is_loaded_by_another_worker,
            the_last_saved_checkpoint_wins,
            checkpoints_of_scopes_and_sources_are_apart,
        }
    };
}

/// Makes one `#[tokio::test]` of each check of the [`AuditLog`](crate::store::AuditLog) contract, on harnesses whose store
/// keeps one; see [`store_conformance!`](crate::store_conformance).
#[macro_export]
macro_rules! audit_log_conformance {
    ($harness:expr) => {
        $crate::conformance_tests! { $harness; audit:
            audit_entries_are_kept_in_order,
            old_audit_entries_are_removed,
        }
    };
}

/// Makes one `#[tokio::test]` of each check of the [`TransactionalStore`](crate::TransactionalStore) contract; the
/// argument makes a fresh [`TransactionalHarness`](crate::testing::store::TransactionalHarness). See
/// [`store_conformance!`](crate::store_conformance).
#[macro_export]
macro_rules! transactional_store_conformance {
    ($harness:expr) => {
        $crate::conformance_tests! { $harness; transactions:
            effect_and_completion_are_committed_together,
            a_dropped_transaction_is_rolled_back,
            the_effect_of_a_failed_handler_is_rolled_back,
            a_commit_after_a_take_over_is_fenced,
            a_lapsed_claim_nobody_took_over_commits,
            a_repeated_run_after_its_commit_is_fenced,
            a_commit_needs_its_claim_to_be_pending,
            a_commit_needs_owner_token_and_fence,
            a_terminal_failure_follows_a_rollback,
            a_claim_for_a_commit_is_answered_as_any_other,
        }
    };
}

/// Makes one `#[tokio::test]` of each check of [`PositionStore::mark_keys`](crate::store::PositionStore::mark_keys); the
/// argument makes a fresh [`TransactionalHarness`](crate::testing::store::TransactionalHarness). See
/// [`store_conformance!`](crate::store_conformance).
#[macro_export]
macro_rules! position_store_conformance {
    ($harness:expr) => {
        $crate::conformance_tests! { $harness; marks:
            marked_keys_are_completed_with_their_effects,
            marks_go_with_their_transaction,
            a_mark_is_told_what_is_known_of_a_key,
            what_a_claim_could_take_over_is_fresh,
            of_two_transactions_with_one_key_one_waits,
        }
    };
}

/// Makes one `#[tokio::test]` of each check of a [`TransactionalStore`](crate::TransactionalStore) that lets effects share
/// a transaction; the argument is that of [`transactional_store_conformance!`](crate::transactional_store_conformance).
#[macro_export]
macro_rules! shared_transaction_conformance {
    ($harness:expr) => {
        $crate::conformance_tests! { $harness; shared_transactions:
            effects_that_share_a_transaction_are_committed_together,
            an_undone_effect_takes_no_other_with_it,
            a_lost_claim_among_several_commits_nothing,
            a_claim_taken_over_or_completed_commits_nothing_shared,
            a_dropped_shared_transaction_is_rolled_back,
        }
    };
}

/// The parts of the macros above.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    (threaded $harness:expr; $module:ident: $($check:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $check() {
                let harness = $harness;
                $crate::testing::store::$module::$check(&harness).await;
            }
        )+
    };
    ($harness:expr; $module:ident: $($check:ident,)+) => {
        $(
            #[tokio::test]
            async fn $check() {
                let harness = $harness;
                $crate::testing::store::$module::$check(&harness).await;
            }
        )+
    };
}

#[cfg(test)]
mod tests {
    use crate::testing::store::MemoryHarness;

    crate::store_conformance!(MemoryHarness::new());
    crate::checkpoint_store_conformance!(MemoryHarness::new());

    #[test]
    fn no_check_is_missing_from_the_macros() {
        let macros = include_str!("macros.rs");
        let modules = [
            include_str!("audit.rs"),
            include_str!("batches.rs"),
            include_str!("checkpoints.rs"),
            include_str!("claims.rs"),
            include_str!("completions.rs"),
            include_str!("failures.rs"),
            include_str!("fencing.rs"),
            include_str!("marks.rs"),
            include_str!("mismatches.rs"),
            include_str!("races.rs"),
            include_str!("records.rs"),
            include_str!("redrives.rs"),
            include_str!("repeats.rs"),
            include_str!("shared_transactions.rs"),
            include_str!("transactions.rs"),
        ];
        let mut checks = 0;
        for line in modules.iter().flat_map(|module| module.lines()) {
            let Some(rest) = line.strip_prefix("pub async fn ") else { continue };
            let name = rest.split('<').next().unwrap_or(rest);
            assert!(macros.contains(&format!("            {name},\n")), "{name} is in no macro");
            checks += 1;
        }
        assert!(checks > 100, "only {checks} checks were found");
    }
}
