//! Claims that a crash of the store forgets: those of transactional runs, whose completion is the guard.

use super::transactions::{Inbox, Runs, TxWorker, attempts};
use super::*;
use crate::testing::MemoryInbox;

/// A worker with a lease that needs no renewal for a while.
fn start(inbox: &Inbox, runs: &Runs) -> TxWorker {
    inbox.start_with(runs, |config| config.lease = 60 * SECOND)
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_claim_is_forgotten_commits_nothing_beside_that_which_follows_it() {
    for transaction_batch in [1, 8] {
        let (inbox, runs) = (Inbox::new(), Runs::default());
        inbox.world.publish_all(["slow-1", "slow-1"]);
        let with = |config: &mut PipelineConfig| {
            (config.lease, config.transaction_batch) = (60 * SECOND, transaction_batch);
        };
        let first = inbox.start_with(&runs, with);
        eventually("the first one runs", || runs.lock().unwrap().len() == 1).await;
        assert_eq!(inbox.inbox.crash().await.len(), 1, "the claim is forgotten");
        // It gets the message from the broker as well: both run at once.
        inbox.world.broker.disconnect_consumer(first.connection);
        let second = inbox.start_with(&runs, with);
        inbox.world.empty().await;
        eventually("both have ended", || first.counters.in_flight() == 0).await;
        assert!(runs.lock().unwrap().len() >= 2, "the second one ran");
        assert_eq!(inbox.inbox.effects(), ["slow-1"]);
        assert!(attempts(&runs).iter().all(|attempt| *attempt == 1), "no attempt is used");
        let (first, second) = (first.end().await, second.end().await);
        assert_eq!(first.counters().get(Counter::Fenced) + second.counters().get(Counter::Fenced), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_run_that_lost_its_claim_the_next_claim_outlives_a_crash() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    inbox.world.publish("slow-1");
    let worker = start(&inbox, &runs);
    eventually("it runs", || runs.lock().unwrap().len() == 1).await;
    assert_eq!(inbox.inbox.crash().await.len(), 1);
    eventually("it runs again", || runs.lock().unwrap().len() == 2).await;
    assert_eq!(inbox.inbox.crash().await, [], "a message that crashes the store leaves a claim behind");
    inbox.world.empty().await;
    assert_eq!(inbox.inbox.effects(), ["slow-1"]);
    assert_eq!(worker.end().await.handled(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_written_after_a_claim_outlives_a_crash_and_so_do_claims_of_plain_runs() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    inbox.world.publish_all(["ok-1", "fails-1"]);
    let worker = start(&inbox, &runs);
    eventually("one is committed and one has failed", || worker.counters.get(Counter::RunsFailed) == 1).await;
    assert_eq!(inbox.inbox.crash().await, []);
    inbox.world.empty().await;
    assert_eq!(attempts(&runs).iter().max(), Some(&2), "the failure is remembered");
    worker.end().await;

    let (world, store) = (World::new(), MemoryInbox::new(MemoryStore::new()));
    let handler = handler_fn((), async |(), _: Message| {
        tokio::time::sleep(SECOND).await;
        Ok(())
    });
    let pipeline = Pipeline::builder(world.scope.clone(), world.broker.consumer(), Arc::new(store.clone()))
        .keys([KeySource::Header("id".into())])
        .config(config())
        .dead_letters(DeadLetters::new(Arc::new(world.letters.clone()), "dead"))
        .handler(handler)
        .unwrap();
    world.publish("plain");
    let (shutdown, counters) = (CancellationToken::new(), pipeline.counters());
    let task = tokio::spawn(pipeline.run(shutdown.clone()));
    tokio::time::sleep(500 * MS).await;
    assert_eq!(counters.in_flight(), 1);
    assert_eq!(store.crash().await, []);
    world.empty().await;
    shutdown.cancel();
    assert_eq!(task.await.unwrap().unwrap().handled(), 1);
}
