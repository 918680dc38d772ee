//! A store that refuses writes while handlers run: only an answer about the record ends a claim.

use super::*;
use crate::error::ErrorKind;
use crate::testing::Operation;

/// Every kind of error that shows nothing about the record.
const KINDS: [ErrorKind; 9] = [
    ErrorKind::Unavailable,
    ErrorKind::Timeout,
    ErrorKind::Throttled,
    ErrorKind::Conflict,
    ErrorKind::Denied,
    ErrorKind::TooLarge,
    ErrorKind::Config,
    ErrorKind::Unsupported,
    ErrorKind::Internal,
];

const WRITES: [Operation; 6] = [
    Operation::Claim,
    Operation::Complete,
    Operation::Renew,
    Operation::Fail,
    Operation::Bury,
    Operation::Release,
];

fn ids() -> Vec<String> {
    (0..16).map(|number| number.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_taken_away_for_a_while_doubles_no_effect_whatever_the_store_calls_it() {
    for kind in KINDS {
        let world = World::new();
        world.publish_all(ids().iter().map(String::as_str));
        let worker = world.worker().config(|config| config.lease = 10 * SECOND).start(|_| async {
            tokio::time::sleep(200 * MS).await;
            Ok(())
        });
        eventually("all run", || world.runs().len() == 16).await;
        WRITES.iter().for_each(|operation| worker.store.refuse(*operation, kind));
        tokio::time::sleep(3 * SECOND).await;
        assert_eq!(world.broker.acked(), 0, "{kind:?}: nothing is acked that is not recorded");
        WRITES.iter().for_each(|operation| worker.store.accept(*operation));
        world.empty().await;
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(world.runs().len(), 16, "{kind:?}: each effect happened once");
        let summary = worker.end().await;
        assert_eq!(summary.handled(), 16, "{kind:?}");
        assert_eq!(summary.counters().get(Counter::SuspectedDoubleEffects), 0, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_only_completions_are_refused_their_leases_are_kept_for_as_long_as_it_takes() {
    for kind in KINDS {
        let world = World::new();
        world.publish("a");
        let worker = world.worker();
        worker.store.refuse(Operation::Complete, kind);
        let worker = worker.start_ok();
        eventually("it has run", || world.runs().len() == 1).await;
        tokio::time::sleep(10 * LEASE).await;
        // Another worker gets a copy and does not take the key over.
        world.publish("a");
        let other = world.worker().start_ok();
        tokio::time::sleep(10 * LEASE).await;
        assert_eq!((world.runs().len(), world.broker.acked()), (1, 0), "{kind:?}");
        worker.store.accept(Operation::Complete);
        world.empty().await;
        assert_eq!(world.runs().len(), 1, "{kind:?}");
        let counted = worker.count(Counter::LeasesLost) + worker.count(Counter::SuspectedDoubleEffects);
        assert_eq!(counted, 0, "{kind:?}");
        let _ = worker.end().await;
        let _ = other.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_run_whose_write_is_refused_is_counted_once_and_runs_again_only_afterwards() {
    for kind in KINDS {
        let world = World::new();
        world.publish("a");
        let worker = world.worker();
        worker.store.refuse(Operation::Fail, kind);
        let worker = worker.start(|message| async move {
            if message.attempt() < 2 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
        });
        tokio::time::sleep(10 * LEASE).await;
        assert_eq!(world.runs().len(), 1, "{kind:?}");
        worker.store.accept(Operation::Fail);
        world.empty().await;
        let attempts: Vec<_> = world.runs().iter().map(|run| run.attempt).collect();
        assert_eq!(attempts, [1, 2], "{kind:?}");
        let _ = worker.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_burial_that_is_refused_is_repeated_and_its_message_is_not_acked_meanwhile() {
    for kind in KINDS {
        let world = World::new();
        world.publish("bad");
        let worker = world.worker();
        worker.store.refuse(Operation::Bury, kind);
        let worker = worker.start(|_| async { Err(HandlerError::permanent("never")) });
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!((world.letters.sent().len(), world.broker.acked()), (1, 0), "{kind:?}");
        worker.store.accept(Operation::Bury);
        world.empty().await;
        assert_eq!(world.state("bad").await, KeyState::Dead, "{kind:?}");
        assert_eq!(world.letters.sent().len(), 1, "{kind:?}");
        assert_eq!(worker.end().await.dead_lettered(), 1, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_burial_of_a_record_that_cannot_be_read_holds_its_message() {
    let world = World::new();
    world.publish("bad");
    let worker = world.worker();
    let (store, key) = (worker.store.clone(), world.key("bad"));
    let worker = worker.start(|_| async { Err(HandlerError::permanent("never")) });
    worker.letters.next(Operation::Publish, crate::testing::Fault::ReplyLate(SECOND));
    eventually("the letter is sent", || world.letters.sent().len() == 1).await;
    store.corrupt(key);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((world.broker.acked(), world.broker.depth()), (0, 1));
    store.mend(&key);
    world.empty().await;
    assert_eq!((world.state("bad").await, world.runs().len()), (KeyState::Dead, 1));
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_comes_to_its_deadline_ends_although_completions_are_refused() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker();
    worker.store.refuse(Operation::Complete, ErrorKind::Denied);
    let worker = worker.start_ok();
    eventually("it has run", || world.runs().len() == 1).await;
    let asked = Instant::now();
    let summary = worker.end().await;
    assert!(asked.elapsed() <= config().drain_timeout + 2 * SECOND, "{:?}", asked.elapsed());
    assert_eq!((summary.handled(), summary.given_back()), (0, 1));
    assert_eq!(summary.counters().get(Counter::SuspectedDoubleEffects), 1);
}
