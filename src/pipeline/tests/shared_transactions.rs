//! Effects that share a transaction: each once, regardless of its neighbours.

use super::transactions::{Inbox, Runs, TxWorker, attempts};
use super::*;
use crate::testing::{Fault, Operation};

/// A worker that takes up to eight runs into a transaction.
fn start(inbox: &Inbox, runs: &Runs) -> TxWorker {
    inbox.start_with(runs, |config| config.transaction_batch = 8)
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

fn runs_of(runs: &Runs, id: &str) -> usize {
    runs.lock().unwrap().iter().filter(|(run, _)| run == id).count()
}

#[tokio::test(start_paused = true)]
async fn what_is_ready_together_shares_a_transaction_up_to_its_size() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    let ids: Vec<String> = (0..20).map(|number| format!("ok-{number:02}")).collect();
    inbox.world.publish_all(ids.iter().map(String::as_str));
    let worker = start(&inbox, &runs);
    inbox.world.empty().await;
    assert_eq!(sorted(inbox.inbox.effects()), ids);
    assert_eq!((worker.store.calls(Operation::Begin), worker.store.calls(Operation::Commit)), (3, 3));
    inbox.world.publish("ok-alone");
    inbox.world.empty().await;
    assert_eq!(worker.store.calls(Operation::Begin), 4, "nothing waits for more");
    assert_eq!(worker.end().await.handled(), 21);
}

#[tokio::test(start_paused = true)]
async fn failures_panics_and_timeouts_take_no_neighbour_with_them() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    let ids = ["fails", "hangs", "ok-1", "ok-2", "panics"];
    inbox.world.publish_all(ids);
    let worker = start(&inbox, &runs);
    inbox.world.empty().await;
    assert_eq!(sorted(inbox.inbox.effects()), ids);
    for id in ids {
        assert_eq!(runs_of(&runs, id), if id.starts_with("ok") { 1 } else { 2 }, "{id}");
    }
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::RunsFailed)), (5, 3));
    assert_eq!((summary.counters().get(Counter::Panics), summary.counters().get(Counter::Timeouts)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_lost_claim_is_fenced_alone_and_its_neighbours_run_once_more_on_their_own() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    inbox.world.publish_all(["ok-1", "slow", "ok-2"]);
    let worker = start(&inbox, &runs);
    eventually("the slow one runs", || runs_of(&runs, "slow") == 1).await;
    assert_eq!(runs_of(&runs, "ok-1"), 1);
    let lost = inbox.world.key("ok-1");
    assert!(inbox.world.store.forget(&inbox.world.scope, &[lost]).await.remove(0).unwrap());
    inbox.world.empty().await;
    assert_eq!(sorted(inbox.inbox.effects()), ["ok-1", "ok-2", "slow"]);
    assert_eq!(runs_of(&runs, "slow"), 2, "once in vain, once alone");
    assert!(attempts(&runs).iter().all(|attempt| *attempt == 1), "what was not committed is no attempt");
    let summary = worker.end().await;
    assert!(summary.counters().get(Counter::Fenced) >= 1);
    assert_eq!(summary.counters().get(Counter::SuspectedDoubleEffects), 0);
}

#[tokio::test(start_paused = true)]
async fn rule_4_after_a_shared_commit_whose_reply_was_lost_the_next_claims_tell() {
    for (fault, runs_each) in [(Fault::ReplyLost, 1), (Fault::ReplyHangs, 1), (Fault::Refused, 2)] {
        let (inbox, runs) = (Inbox::new(), Runs::default());
        inbox.world.publish_all(["ok-1", "ok-2", "ok-3"]);
        let worker = start(&inbox, &runs);
        worker.store.record();
        worker.store.next(Operation::Commit, fault);
        inbox.world.empty().await;
        assert_eq!(sorted(inbox.inbox.effects()), ["ok-1", "ok-2", "ok-3"], "{fault:?}");
        assert_eq!(runs.lock().unwrap().len(), 3 * runs_each, "{fault:?}");
        let calls = worker.store.recorded();
        let released = calls.iter().find(|call| call.operation == Operation::Release);
        assert!(
            released.is_none_or(|call| call.at >= LEASE),
            "a claim with a commit in doubt is not released"
        );
        assert_eq!(worker.store.calls(Operation::Fail), 0);
        let _ = worker.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_transaction_lost_on_the_way_is_made_up_for_one_by_one_and_uses_up_no_attempt() {
    for (operation, failed) in [(Operation::Keep, 0), (Operation::Undo, 1), (Operation::Begin, 0)] {
        for fault in [Fault::Refused, Fault::Hangs] {
            let (inbox, runs) = (Inbox::new(), Runs::default());
            let ids = if failed == 0 { ["ok-1", "ok-2", "ok-3"] } else { ["fails", "ok-2", "ok-3"] };
            inbox.world.publish_all(ids);
            let worker = start(&inbox, &runs);
            worker.store.next(operation, fault);
            inbox.world.empty().await;
            assert_eq!(sorted(inbox.inbox.effects()), ids, "{operation:?} {fault:?}");
            let later = attempts(&runs).into_iter().filter(|attempt| *attempt > 1).count();
            assert_eq!(later, failed, "{operation:?} {fault:?}");
            let summary = worker.end().await;
            assert_eq!((summary.handled(), summary.counters().get(Counter::RunsFailed)), (3, failed as u64));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_run_keeps_no_neighbours_effect_from_being_committed_for_long() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    inbox.world.publish_all(["ok-1", "slow-1", "slow-2"]);
    let worker = start(&inbox, &runs);
    eventually("the last one runs", || runs_of(&runs, "slow-2") == 1).await;
    // Those before it had taken up the time of a transaction, and are committed.
    assert_eq!(inbox.inbox.effects(), ["ok-1", "slow-1"]);
    inbox.world.empty().await;
    assert_eq!(inbox.inbox.effects(), ["ok-1", "slow-1", "slow-2"]);
    assert_eq!(runs.lock().unwrap().len(), 3);
    // It waited for four leases, which were renewed meanwhile.
    assert_eq!(inbox.world.record("slow-2").await.map(|record| record.lost), Some(0));
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::LeasesLost)), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_commits_what_has_run_and_starts_none_of_those_that_wait() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    inbox.world.publish_all(["ok-1", "slow", "ok-2"]);
    let worker = start(&inbox, &runs);
    eventually("the slow one runs", || runs_of(&runs, "slow") == 1).await;
    let summary = worker.end().await;
    assert_eq!(inbox.inbox.effects(), ["ok-1", "slow"]);
    assert_eq!((summary.handled(), summary.given_back(), runs_of(&runs, "ok-2")), (2, 1, 0));
    let left = inbox.world.record("ok-2").await;
    assert!(left.is_none_or(|record| record.state != KeyState::Pending), "its claim was given back");
}

#[tokio::test(start_paused = true)]
async fn c06_a_death_before_the_shared_commit_rolls_all_back_and_one_after_it_is_found() {
    for (fault, effects_at_death) in [(Fault::Hangs, 0), (Fault::ReplyHangs, 3)] {
        let (inbox, runs) = (Inbox::new(), Runs::default());
        inbox.world.publish_all(["ok-1", "ok-2", "ok-3"]);
        let first = start(&inbox, &runs);
        first.store.next(Operation::Commit, fault);
        eventually("the commit is sent", || first.store.calls(Operation::Commit) == 1).await;
        first.process.stop();
        inbox.world.broker.disconnect_consumer(first.connection);
        assert_eq!(inbox.inbox.effects().len(), effects_at_death);
        let second = start(&inbox, &runs);
        inbox.world.empty().await;
        assert_eq!(sorted(inbox.inbox.effects()), ["ok-1", "ok-2", "ok-3"]);
        let summary = second.end().await;
        assert_eq!(summary.handled() + summary.duplicates(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn keys_whose_claim_has_lapsed_before_run_in_transactions_of_their_own() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    for id in ["ok-1", "ok-2"] {
        let _ = inbox.world.claim_elsewhere(id, SECOND).await;
    }
    tokio::time::sleep(2 * SECOND).await;
    inbox.world.publish_all(["ok-1", "ok-2", "ok-3", "ok-4"]);
    let worker = start(&inbox, &runs);
    inbox.world.empty().await;
    assert_eq!(sorted(inbox.inbox.effects()), ["ok-1", "ok-2", "ok-3", "ok-4"]);
    assert_eq!(worker.store.calls(Operation::Begin), 3);
    let _ = worker.end().await;
}

#[test]
fn a_handler_without_a_transaction_shares_none() {
    let world = World::new();
    let (builder, _parts) = world.worker().config(|config| config.transaction_batch = 2).pipeline();
    let error = builder.handler(handler_fn((), async |(), _| Ok::<_, HandlerError>(()))).unwrap_err();
    assert!(error.to_string().contains("transaction_batch is 2"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn runs_that_share_a_transaction_and_find_the_handler_unavailable_use_no_attempt() {
    for size in [1, 8] {
        let (inbox, runs) = (Inbox::new(), Runs::default());
        let ids = ["away-1", "away-2", "away-3", "ok-1"];
        inbox.world.publish_all(ids);
        let worker = inbox.start_with(&runs, |config| config.transaction_batch = size);
        inbox.world.empty().await;
        assert_eq!(sorted(inbox.inbox.effects()), ids, "in transactions of {size}");
        assert!(attempts(&runs).iter().all(|attempt| *attempt == 1));
        assert_eq!(runs_of(&runs, "away-1"), 6);
        let summary = worker.end().await;
        let count = |counter| summary.counters().get(counter);
        assert_eq!((summary.handled(), count(Counter::RunsFailed), count(Counter::Unavailable)), (4, 0, 15));
    }
}
