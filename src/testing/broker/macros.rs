//! Macros that generate one test for each check.

/// Makes one `#[tokio::test]` of each check of the [`Consumer`](crate::adapter::Consumer) and [`Acker`](crate::adapter::Acker) contracts.
/// The argument is an expression that makes a fresh [`BrokerHarness`](crate::testing::broker::BrokerHarness); it may
/// await. The calling crate needs `tokio` with the features `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! broker_conformance {
    ($harness:expr) => {
        $crate::broker_conformance_tests! { $harness; deliveries:
            every_published_message_is_delivered,
            every_delivery_has_a_tag_of_its_own,
            an_ordered_source_keeps_the_order,
            a_position_is_a_messages_own_and_stays,
            a_source_ends_if_it_says_so,
            an_idle_source_says_so_if_it_can,
            a_dropped_receive_loses_no_delivery,
            what_was_not_acked_comes_again_after_closing,
            what_was_not_acked_comes_again_after_a_drop,
            what_was_acked_does_not_come_again,
        }
        $crate::broker_conformance_tests! { $harness; settlements:
            a_batch_is_settled_in_any_order,
            an_empty_batch_has_no_results,
            one_foreign_item_fails_alone_and_settles_nothing,
            a_retried_message_comes_again_with_another_tag,
            a_delayed_retry_keeps_its_delay,
            an_abandoned_message_is_given_back,
            a_late_settlement_is_answered,
            an_extended_delivery_stays_ours,
        }
        $crate::broker_conformance_tests! { $harness; flow:
            a_paused_partition_delivers_again_once_it_is_resumed,
        }
    };
}

/// The parts of the macro above.
#[doc(hidden)]
#[macro_export]
macro_rules! broker_conformance_tests {
    ($harness:expr; $module:ident: $($check:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                let harness = $harness;
                $crate::testing::broker::$module::$check(&harness).await;
            }
        )+
    };
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::testing::Habits;
    use crate::testing::broker::MemoryBrokerHarness;

    mod endless {
        use super::*;

        crate::broker_conformance!(MemoryBrokerHarness::new());
    }

    mod finite {
        use super::*;

        crate::broker_conformance!(MemoryBrokerHarness::with(Habits { finite: true, ..Habits::default() }));
    }

    mod partitioned {
        use super::*;

        crate::broker_conformance!(MemoryBrokerHarness::with(Habits { partitions: 3, ..Habits::default() }));
    }

    mod with_visibility_and_delays {
        use super::*;

        crate::broker_conformance!(MemoryBrokerHarness::with(Habits {
            visibility: Some(Duration::from_secs(2)),
            delayed_retry: true,
            ..Habits::default()
        }));
    }

    #[test]
    fn no_check_is_missing_from_the_macro() {
        let macros = include_str!("macros.rs");
        let modules =
            [include_str!("deliveries.rs"), include_str!("settlements.rs"), include_str!("flow.rs")];
        let mut checks = 0;
        for line in modules.iter().flat_map(|module| module.lines()) {
            let Some(rest) = line.strip_prefix("pub async fn ") else { continue };
            let name = rest.split('<').next().unwrap_or(rest);
            assert!(macros.contains(&format!("            {name},\n")), "{name} is in no macro");
            checks += 1;
        }
        assert!(checks > 15, "only {checks} checks were found");
    }
}
