//! Checks the ownership of keys: leases kept, lost, and fenced; owners that die, stand still, and return too late.

use super::*;
use crate::store::{CompleteRequest, Completion, RenewRequest, Renewal};
use crate::testing::{Fault, Operation};

/// Sleeps without looking at its cancellation.
async fn sleeps(length: Duration) -> Handled {
    tokio::time::sleep(length).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn c03_when_the_holder_dies_its_message_runs_elsewhere_after_the_lease() {
    let world = World::new();
    world.publish("a");
    let first = world.worker().start(|_| sleeps(SECOND));
    tokio::time::sleep(500 * MS).await;
    let second = world.worker().start(|_| sleeps(SECOND));
    first.die();
    let died = Instant::now();
    world.empty().await;
    let runs = world.runs();
    assert_eq!(runs.len(), 2);
    assert!(runs[0].ended.is_none() && runs[0].worker != runs[1].worker);
    let waited = runs[1].started - died;
    assert!(waited >= LEASE - 500 * MS && waited <= LEASE + SECOND, "{waited:?}");
    assert!(runs[1].fence > runs[0].fence);
    let summary = second.end().await;
    assert_eq!(summary.handled(), 1);
}

#[tokio::test(start_paused = true)]
async fn c04_a_redelivery_inside_the_lease_is_not_acked_and_runs_after_it() {
    let world = World::new();
    world.publish("a");
    let first = world.worker().start(|_| std::future::pending());
    eventually("the handler runs", || world.runs().len() == 1).await;
    first.die();
    let second = world.worker().start_ok();
    tokio::time::sleep(LEASE - 100 * MS).await;
    assert_eq!((world.broker.acked(), world.runs().len()), (0, 1));
    world.empty().await;
    let run = &world.runs()[1];
    assert!(run.started - world.runs()[0].started >= LEASE, "not before the lease is over");
    let summary = second.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn c06_an_owner_that_dies_between_effect_and_completion_may_be_repeated_under_a_larger_fence() {
    let world = World::new();
    world.publish("a");
    let first = world.worker().start_ok();
    first.store.next(Operation::Complete, Fault::Hangs);
    eventually("the effect has happened", || world.runs().iter().any(|run| run.ended.is_some())).await;
    first.die();
    let second = world.worker().start_ok();
    world.empty().await;
    let runs = world.runs();
    assert_eq!(runs.len(), 2);
    assert!(runs[1].fence > runs[0].fence, "rule 2: a sink can refuse the stale one");
    assert_eq!(world.record("a").await.unwrap().lost, 1, "it is told apart");
    let _ = second.end().await;
}

#[tokio::test(start_paused = true)]
async fn c07_a_death_between_completion_and_ack_leaves_a_duplicate_to_ack() {
    let world = World::new();
    world.publish("a");
    let first = world.worker().start_ok();
    first.broker.next(Operation::Settle, Fault::Hangs);
    tokio::time::sleep(100 * MS).await;
    assert_eq!((world.state("a").await, world.broker.acked()), (KeyState::Completed, 0));
    first.die();
    let second = world.worker().start_ok();
    world.empty().await;
    let summary = second.end().await;
    assert_eq!((summary.handled(), summary.duplicates(), world.runs().len()), (0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn c11_a_holder_that_stood_still_beyond_its_lease_finds_the_work_done_and_counts_a_suspected_double() {
    let world = World::new();
    world.publish("a");
    let first = world.worker().start(|_| sleeps(SECOND));
    tokio::time::sleep(500 * MS).await;
    first.process.stop();
    // The broker, too, has given up on it.
    world.broker.disconnect();
    let second = world.worker().start(|_| sleeps(SECOND));
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!((world.broker.acked(), world.runs().len()), (1, 2));
    first.process.resume();
    tokio::time::sleep(SECOND).await;
    let (first, second) = (first.end().await, second.end().await);
    assert_eq!(second.handled(), 1);
    assert!(first.counters().get(Counter::SuspectedDoubleEffects) >= 1);
    assert!(world.runs()[1].fence > world.runs()[0].fence);
    assert_eq!(world.state("a").await, KeyState::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_stood_still_does_not_ack_while_another_holds_its_key() {
    let world = World::new();
    world.publish("a");
    let first = world.worker().start(|_| sleeps(SECOND));
    tokio::time::sleep(500 * MS).await;
    first.process.stop();
    tokio::time::sleep(LEASE).await;
    let elsewhere = world.claim_elsewhere("a", 60 * SECOND).await;
    first.process.resume();
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!(world.broker.acked(), 0, "pending by another: not acked");
    let record = world.record("a").await.unwrap();
    assert_eq!((record.state, record.fence), (KeyState::Pending, elsewhere.fence));
    assert!(first.count(Counter::Fenced) >= 1 && first.count(Counter::SuspectedDoubleEffects) >= 1);
    world.empty().await;
    let _ = first.end().await;
}

#[tokio::test(start_paused = true)]
async fn c12_a_holder_that_stood_still_and_fails_does_not_free_the_key_of_another() {
    let world = World::new();
    world.publish("a");
    let first = world.worker().start(|_| async {
        tokio::time::sleep(SECOND).await;
        Err(HandlerError::retry("broken"))
    });
    tokio::time::sleep(500 * MS).await;
    first.process.stop();
    tokio::time::sleep(LEASE).await;
    let elsewhere = world.claim_elsewhere("a", 60 * SECOND).await;
    let started = Instant::now();
    first.process.resume();
    while started.elapsed() < 59 * SECOND {
        tokio::time::sleep(SECOND).await;
        let record = world.record("a").await.unwrap();
        assert_eq!((record.state, record.fence, record.attempts), (KeyState::Pending, elsewhere.fence, 0));
        assert_eq!(world.runs().len(), 1, "a third copy does not start");
    }
    let _ = first.end().await;
}

#[tokio::test(start_paused = true)]
async fn c13_a_holder_that_stood_still_does_not_renew_the_claim_of_another() {
    let world = World::new();
    world.publish("a");
    let first = world.worker().start(|message| async move {
        message.cancellation().cancelled().await;
        Err(HandlerError::retry("told to stop"))
    });
    tokio::time::sleep(500 * MS).await;
    first.process.stop();
    tokio::time::sleep(LEASE).await;
    // The other one dies at once: its claim must lapse on time.
    let _ = world.claim_elsewhere("a", LEASE).await;
    let claimed = Instant::now();
    first.process.resume();
    eventually("the key runs again", || world.runs().len() >= 2).await;
    let waited = world.runs()[1].started - claimed;
    assert!(waited >= LEASE && waited <= LEASE + SECOND, "{waited:?}");
    let _ = first.end().await;
}

#[tokio::test(start_paused = true)]
async fn c14_a_handler_six_times_longer_than_the_lease_runs_once_and_alone() {
    let world = World::new();
    world.publish("a");
    let long = |config: &mut PipelineConfig| config.handler_timeout = 60 * SECOND;
    let first = world.worker().config(long).start(|_| sleeps(6 * LEASE));
    tokio::time::sleep(SECOND).await;
    let second = world.worker().config(long).start(|_| sleeps(6 * LEASE));
    world.publish("a");
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!((world.broker.acked(), world.runs().len()), (0, 1));
    world.empty().await;
    assert_eq!(world.runs().len(), 1);
    let (first, second) = (first.end().await, second.end().await);
    assert_eq!(first.handled() + second.handled(), 1);
    assert_eq!(first.duplicates() + second.duplicates(), 1);
}

#[tokio::test(start_paused = true)]
async fn rule_11_the_lease_is_renewed_for_as_long_as_the_handler_runs() {
    let world = World::new();
    world.publish("a");
    let worker =
        world.worker().config(|config| config.handler_timeout = 60 * SECOND).start(|_| sleeps(6 * LEASE));
    for _ in 0..11 {
        tokio::time::sleep(SECOND).await;
        let left = world.record("a").await.unwrap().lease_left.unwrap();
        assert!(left > LEASE / 3, "{left:?} of the lease is left");
    }
    let renewals = worker.store.calls(Operation::Renew);
    assert!((12..=24).contains(&renewals), "{renewals} renewals in 11 s with a lease of 2 s");
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), world.runs().len()), (1, 1));
    assert_eq!(summary.counters().get(Counter::LeasesLost), 0);
}

#[tokio::test(start_paused = true)]
async fn c15_when_renewals_do_not_get_through_the_handler_is_told_before_the_lease_ends() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().start(|message| async move {
        message.cancellation().cancelled().await;
        Err(HandlerError::retry("told to stop"))
    });
    eventually("the handler runs", || world.runs().len() == 1).await;
    let lease_ends = Instant::now() + LEASE;
    worker.store.go_down();
    eventually("the handler was told", || world.runs()[0].ended.is_some()).await;
    let told = world.runs()[0].ended.clone().unwrap().0;
    assert!(told < lease_ends, "told {:?} after the end of the lease", told - lease_ends);
    assert_eq!(worker.count(Counter::LeasesLost), 1);
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(world.broker.acked(), 0);
    worker.store.come_up();
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn rule_3_a_renewal_that_hangs_does_not_keep_the_next_one_from_saving_the_lease() {
    let world = World::new();
    world.publish("a");
    let worker =
        world.worker().config(|config| config.store_timeout = 5 * SECOND).start(|_| sleeps(2 * LEASE));
    worker.store.next(Operation::Renew, Fault::Hangs);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::LeasesLost)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn rule_3_a_handler_does_not_start_on_a_lease_with_little_left() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().config(|config| config.store_timeout = 10 * SECOND);
    // The claim is applied at once, and its reply takes most of the lease.
    worker.store.next(Operation::Claim, Fault::ReplyLate(LEASE - 300 * MS));
    let worker = worker.start(|_| sleeps(SECOND));
    worker.store.record();
    eventually("the handler runs", || world.runs().len() == 1).await;
    let left = world.record("a").await.unwrap().lease_left.unwrap();
    assert!(left > LEASE * 9 / 10, "{left:?} left at the handler's start");
    world.empty().await;
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn rule_3_a_claim_that_was_answered_after_its_lease_and_taken_over_does_not_run() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().config(|config| config.store_timeout = 10 * SECOND);
    worker.store.next(Operation::Claim, Fault::ReplyLate(2 * LEASE));
    let worker = worker.start_ok();
    tokio::time::sleep(LEASE + 500 * MS).await;
    let elsewhere = world.claim_elsewhere("a", 60 * SECOND).await;
    tokio::time::sleep(10 * SECOND).await;
    assert!(world.runs().is_empty());
    assert_eq!(world.record("a").await.unwrap().fence, elsewhere.fence);
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn rule_2_every_run_of_a_key_carries_a_larger_fence_than_the_one_before() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().config(|config| config.retry.max_attempts = 6).start(|message| async move {
        if message.attempt() < 6 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    });
    world.empty().await;
    let fences: Vec<_> = world.runs().iter().map(|run| run.fence).collect();
    assert_eq!(fences.len(), 6);
    assert!(fences.windows(2).all(|pair| pair[0] < pair[1]), "{fences:?}");
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_forgotten_while_it_runs_is_completed_all_the_same_and_counted() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().start(|_| sleeps(500 * MS));
    tokio::time::sleep(100 * MS).await;
    world.store.forget(&world.scope, &[world.key("a")]).await.pop().unwrap().unwrap();
    world.empty().await;
    assert_eq!(world.state("a").await, KeyState::Completed);
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::ClaimLost)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_lapsed_lease_that_nobody_took_over_still_completes() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().start(|_| sleeps(3 * LEASE));
    for _ in 0..100 {
        worker.store.next(Operation::Renew, Fault::Refused);
    }
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), world.runs().len()), (1, 1));
    assert_eq!(summary.counters().get(Counter::LeasesLost), 1);
    assert_eq!(summary.counters().get(Counter::SuspectedDoubleEffects), 0);
}

#[tokio::test(start_paused = true)]
async fn the_helper_claims_as_another_process_would() {
    // Checks the tests' own helper: only the helper's lease renews and completes its claim.
    let world = World::new();
    let lease = world.claim_elsewhere("a", LEASE).await;
    let renew = RenewRequest { lease, lease_for: LEASE, started: false };
    let renewed = world.store.renew(&world.scope, &[renew]).await.pop().unwrap().unwrap();
    assert_eq!(renewed, Renewal::Renewed);
    let complete = CompleteRequest::new(lease, 3600 * SECOND);
    let completed = world.store.complete(&world.scope, &[complete]).await.pop().unwrap().unwrap();
    assert_eq!(completed, Completion::Completed);
}

#[tokio::test(start_paused = true)]
async fn thousands_of_leases_are_renewed_in_time_by_a_slow_store() {
    let world = World::new();
    let ids: Vec<String> = (0..4096).map(|number| number.to_string()).collect();
    world.publish_all(ids.iter().map(String::as_str));
    let worker = world
        .worker()
        .config(|config| {
            config.lease = 30 * SECOND;
            config.store_timeout = 5 * SECOND;
            config.handler_timeout = 300 * SECOND;
            config.concurrency = 4096;
            config.max_batch = 256;
        })
        .start(|_| sleeps(120 * SECOND));
    eventually("all run", || world.runs().len() == 4096).await;
    worker.store.set(Faults { latency: 2 * SECOND, reply_latency: 2 * SECOND, seed: 5, ..Faults::NONE });
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), world.runs().len()), (4096, 4096));
    assert_eq!(summary.counters().get(Counter::LeasesLost), 0);
}

#[tokio::test(start_paused = true)]
async fn renewals_that_hang_delay_no_others() {
    let world = World::new();
    let ids: Vec<String> = (0..64).map(|number| number.to_string()).collect();
    world.publish_all(ids.iter().map(String::as_str));
    let worker = world
        .worker()
        .config(|config| {
            config.store_timeout = 10 * SECOND;
            config.max_batch = 4;
        })
        .start(|_| sleeps(6 * SECOND));
    eventually("all run", || world.runs().len() == 64).await;
    // Of the sixteen calls that are due a quarter hang.
    for number in 0..16 {
        let fault = if number % 4 == 0 { Fault::Hangs } else { Fault::Late(MS) };
        worker.store.next(Operation::Renew, fault);
    }
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::LeasesLost)), (64, 0));
}

/// An earlier call of the claim is still under way when its repeat is answered: the repeat meets its own first call.
#[tokio::test(start_paused = true)]
async fn c8_a_claim_that_met_its_own_first_call_recognises_itself_later() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker();
    worker.store.meets_its_own_call();
    let worker = worker.start_ok();
    world.empty().await;
    let run = &world.runs()[0];
    assert!(world.since_start(run.started) < LEASE, "it did not wait for its own lease");
    assert_eq!(world.record("a").await.unwrap().lost, 0);
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn waiting_for_leases_of_others_and_take_overs_are_logged_without_haste() {
    let everything = super::secrets::Everything::default();
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let guard = tracing::subscriber::set_default(everything.clone());
    let world = World::new();
    for id in ["a", "b", "c"] {
        let _ = world.claim_elsewhere(id, 60 * SECOND).await;
    }
    world.publish_all(["a", "b", "c", "d"]);
    let worker = world.worker().start(|message| async move {
        if message.attempt() == 1 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    });
    world.empty().await;
    tokio::time::sleep(60 * SECOND).await;
    drop(guard);
    let text = everything.0.lock().unwrap().clone();
    let lines = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    let held = lines("3 keys are held by claims of other processes; the longest lease ends in at most");
    assert!((5..=7).contains(&held), "{held} lines in 60 s:\n{text}");
    assert_eq!(lines("expired claim taken over; if its handler had started"), 3, "once per key:\n{text}");
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::Takeovers)), (4, 3));
}
