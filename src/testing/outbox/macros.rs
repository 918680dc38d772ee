//! Macros that generate one test for each check.

/// Makes one `#[tokio::test]` of each check of the [`OutboxStore`](crate::outbox::OutboxStore) contract. The argument is an
/// expression that makes a fresh [`OutboxHarness`](crate::testing::outbox::OutboxHarness); it may await. The calling crate needs
/// `tokio` with the features `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! outbox_conformance {
    ($harness:expr) => {
        $crate::outbox_conformance_tests! { $harness; rows:
            what_commits_comes_out_whole_and_what_does_not_never_was,
            a_message_that_cannot_be_kept_is_refused_with_words,
            what_was_taken_nobody_else_gets_until_it_is_let_go,
            a_failed_row_waits_for_its_time_and_its_key_with_it,
            every_key_gets_its_turn_however_many_rows_the_others_have,
            only_what_was_published_long_ago_is_removed,
        }
        $crate::outbox_conformance_tests! { $harness; relays:
            three_relays_and_lost_confirms_lose_nothing_and_keep_each_keys_order,
            a_poison_row_holds_back_its_own_key_and_no_other,
            a_commit_wakes_the_relay_and_what_was_published_is_removed,
        }
    };
}

/// The parts of the macro above.
#[doc(hidden)]
#[macro_export]
macro_rules! outbox_conformance_tests {
    ($harness:expr; $module:ident: $($check:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                let harness = $harness;
                $crate::testing::outbox::$module::$check(&harness).await;
            }
        )+
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_check_is_missing_from_the_macro() {
        let macros = include_str!("macros.rs");
        let modules = [include_str!("rows.rs"), include_str!("relays.rs")];
        let mut checks = 0;
        for line in modules.iter().flat_map(|module| module.lines()) {
            let Some(rest) = line.strip_prefix("pub async fn ") else { continue };
            let name = rest.split('<').next().unwrap_or(rest);
            assert!(macros.contains(&format!("            {name},\n")), "{name} is in no macro");
            checks += 1;
        }
        assert!(checks > 7, "only {checks} checks were found");
    }
}
