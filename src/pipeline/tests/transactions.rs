//! Effects committed with their completion: once, under every failure.

use super::*;
use crate::handler::tx_handler;
use crate::telemetry::Observer;
use crate::testing::{Fault, MemoryInbox, MemoryTransaction, Operation};

/// A worker over an inbox; the message decides what its handler does.
pub(super) struct Inbox {
    pub(super) world: World,
    pub(super) inbox: MemoryInbox,
    pub(super) observer: Option<Arc<dyn Observer>>,
}

pub(super) type Task = JoinHandle<Result<Summary, Error>>;

pub(super) struct TxWorker {
    pub(super) store: FaultyStore<MemoryInbox>,
    pub(super) counters: Arc<Counters>,
    pub(super) shutdown: CancellationToken,
    pub(super) process: Process,
    pub(super) task: Task,
    pub(super) connection: u64,
}

/// `ok`, `slow`, `fails`, `hangs` or `panics` is what the first attempt does after its effect is written.
async fn by_id(
    runs: Arc<Mutex<Vec<(String, u32)>>>,
    message: Message,
    tx: &mut MemoryTransaction,
) -> Handled {
    let id = id_of(&message);
    runs.lock().unwrap().push((id.clone(), message.attempt()));
    tx.effect(id.clone());
    if message.attempt() > 1 {
        return Ok(());
    }
    match id.split('-').next().unwrap() {
        "slow" => tokio::time::sleep(8 * SECOND).await,
        "conflicts" if runs.lock().unwrap().iter().filter(|(run, _)| *run == id).count() == 1 => {
            return Err(HandlerError::conflict("deadlock detected"));
        }
        "away" if runs.lock().unwrap().iter().filter(|(run, _)| *run == id).count() <= 5 => {
            return Err(HandlerError::unavailable("connection refused"));
        }
        "gone" => {
            tokio::time::sleep(100 * MS).await;
            return Err(HandlerError::unavailable("connection refused"));
        }
        "fails" => return Err(HandlerError::retry("broken")),
        "hangs" => std::future::pending().await,
        "panics" => panic!("broken"),
        _ => {}
    }
    Ok(())
}

impl Inbox {
    pub(super) fn new() -> Self {
        let world = World::new();
        let inbox = MemoryInbox::new(world.store.clone());
        Self { world, inbox, observer: None }
    }

    fn start(&self, runs: &Arc<Mutex<Vec<(String, u32)>>>) -> TxWorker {
        self.start_with(runs, |_| {})
    }

    pub(super) fn start_with(&self, runs: &Runs, change: impl FnOnce(&mut PipelineConfig)) -> TxWorker {
        let mut config = config();
        change(&mut config);
        let process = Process::new();
        let store = FaultyStore::inside(self.inbox.clone(), Faults::NONE, &process);
        let consumer = self.world.broker.consumer();
        let connection = consumer.number();
        let mut pipeline = Pipeline::builder(
            self.world.scope.clone(),
            FaultyConsumer::new(consumer, &process),
            Arc::new(store.clone()),
        );
        if let Some(observer) = &self.observer {
            pipeline = pipeline.observer(Arc::clone(observer));
        }
        let pipeline = pipeline
            .keys([KeySource::Header("id".into())])
            .config(PipelineConfig { seed: Some(connection), ..config })
            .dead_letters(DeadLetters::new(Arc::new(self.world.letters.clone()), "dead"))
            .transactional_handler(tx_handler(&self.inbox, Arc::clone(runs), by_id))
            .unwrap();
        let shutdown = CancellationToken::new();
        let counters = pipeline.counters();
        let task = tokio::spawn(pipeline.run(shutdown.clone()));
        TxWorker { store, counters, shutdown, process, task, connection }
    }
}

impl TxWorker {
    pub(super) async fn end(self) -> Summary {
        self.shutdown.cancel();
        let summary = self.task.await.unwrap().unwrap();
        assert_accounted(summary.counters());
        summary
    }
}

pub(super) type Runs = Arc<Mutex<Vec<(String, u32)>>>;

pub(super) fn attempts(runs: &Runs) -> Vec<u32> {
    runs.lock().unwrap().iter().map(|(_, attempt)| *attempt).collect()
}

#[tokio::test(start_paused = true)]
async fn an_effect_and_its_completion_are_committed_together_and_a_copy_finds_them() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    let worker = inbox.start(&runs);
    inbox.world.publish_all(["ok-1", "ok-1", "ok-2"]);
    inbox.world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates()), (2, 1));
    assert_eq!(inbox.inbox.effects(), ["ok-1", "ok-2"]);
    assert_eq!(inbox.world.state("ok-1").await, KeyState::Completed);
}

#[tokio::test(start_paused = true)]
async fn failures_panics_and_timeouts_roll_their_effect_back() {
    for (id, counter) in
        [("fails", Counter::RunsFailed), ("panics", Counter::Panics), ("hangs", Counter::Timeouts)]
    {
        let (inbox, runs) = (Inbox::new(), Runs::default());
        let worker = inbox.start(&runs);
        inbox.world.publish(id);
        eventually("the first run is recorded", || worker.counters.get(Counter::RunsFailed) == 1).await;
        assert_eq!(inbox.inbox.effects(), [""; 0]);
        inbox.world.empty().await;
        assert_eq!((attempts(&runs), inbox.inbox.effects()), (vec![1, 2], vec![id.to_owned()]));
        let summary = worker.end().await;
        assert_eq!((summary.handled(), summary.counters().get(counter)), (1, 1), "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn c11_a_run_whose_claim_was_taken_over_is_fenced_and_its_effect_discarded() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    inbox.world.publish("slow");
    let first = inbox.start(&runs);
    tokio::time::sleep(500 * MS).await;
    first.process.stop();
    inbox.world.broker.disconnect();
    let second = inbox.start(&runs);
    eventually("the other one runs", || attempts(&runs).len() == 2).await;
    first.process.resume();
    inbox.world.empty().await;
    assert_eq!(inbox.inbox.effects(), ["slow"], "the zombie's effect was rolled back");
    assert!(first.counters.get(Counter::Fenced) >= 1);
    assert_eq!(first.counters.get(Counter::SuspectedDoubleEffects), 0);
    let _ = first.end().await;
    let _ = second.end().await;
}

#[tokio::test(start_paused = true)]
async fn c06_a_death_before_the_commit_rolls_back_and_one_after_it_is_found() {
    for (fault, effects_at_death) in [(Fault::Hangs, 0), (Fault::ReplyHangs, 1)] {
        let (inbox, runs) = (Inbox::new(), Runs::default());
        let first = inbox.start(&runs);
        first.store.next(Operation::Commit, fault);
        inbox.world.publish("ok");
        eventually("the commit is sent", || first.store.calls(Operation::Commit) == 1).await;
        first.process.stop();
        inbox.world.broker.disconnect_consumer(first.connection);
        assert_eq!(inbox.inbox.effects().len(), effects_at_death);
        let second = inbox.start(&runs);
        inbox.world.empty().await;
        assert_eq!(inbox.inbox.effects(), ["ok"]);
        let summary = second.end().await;
        assert_eq!(summary.handled() + summary.duplicates(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn rule_4_after_a_commit_whose_reply_was_lost_the_next_claim_tells() {
    for (fault, runs_needed) in [(Fault::ReplyLost, 1), (Fault::ReplyHangs, 1), (Fault::Refused, 2)] {
        let (inbox, runs) = (Inbox::new(), Runs::default());
        let worker = inbox.start(&runs);
        worker.store.record();
        worker.store.next(Operation::Commit, fault);
        inbox.world.publish("ok");
        inbox.world.empty().await;
        assert_eq!(inbox.inbox.effects(), ["ok"], "{fault:?}");
        assert_eq!(runs.lock().unwrap().len(), runs_needed, "{fault:?}");
        let calls = worker.store.recorded();
        let released = calls.iter().any(|call| call.operation == Operation::Release);
        assert!(!released, "a claim with a commit in doubt is not released");
        assert_eq!(worker.store.calls(Operation::Fail), 0);
        // The claim recognises itself: it waits for no lapse, and none is charged to the message.
        assert!(inbox.world.since_start(Instant::now()) < LEASE, "{fault:?}");
        assert_eq!(inbox.world.record("ok").await.unwrap().lost, 0);
        let _ = worker.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn rule_5_a_transaction_that_cannot_be_opened_uses_up_no_attempt_however_often() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    let worker = inbox.start(&runs);
    (0..10).for_each(|_| worker.store.next(Operation::Begin, Fault::Refused));
    worker.store.next(Operation::Begin, Fault::Hangs);
    inbox.world.publish("ok");
    inbox.world.empty().await;
    assert_eq!((attempts(&runs), inbox.inbox.effects()), (vec![1], vec!["ok".to_owned()]));
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 0));
    assert!(summary.counters().get(Counter::StoreErrors) >= 11);
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_key_is_never_run_in_a_transaction_without_a_claim() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    let worker = inbox.start(&runs);
    inbox.world.broker.publish(Message::builder("x"));
    inbox.world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.dead_lettered(), runs.lock().unwrap().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_full_of_faults_commits_every_effect_once() {
    for transaction_batch in [1, 16] {
        let (inbox, runs) = (Inbox::new(), Runs::default());
        let worker = inbox.start_with(&runs, |config| config.transaction_batch = transaction_batch);
        worker.store.set(Faults {
            refused: 0.15,
            reply_lost: 0.15,
            latency: 100 * MS,
            seed: 3,
            ..Faults::NONE
        });
        let ids: Vec<String> = (0..200).map(|number| format!("ok-{number}")).collect();
        inbox.world.publish_all(ids.iter().map(String::as_str));
        inbox.world.empty().await;
        let mut effects = inbox.inbox.effects();
        effects.sort();
        let mut expected = ids.clone();
        expected.sort();
        assert_eq!(effects, expected);
        let summary = worker.end().await;
        assert_eq!(summary.handled() + summary.duplicates(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_at_the_commit_or_the_beginning_is_repeated_at_once_without_an_attempt() {
    use crate::error::ErrorKind::Conflict;
    let (inbox, runs) = (Inbox::new(), Runs::default());
    let worker = inbox.start(&runs);
    for _ in 0..3 {
        worker.store.next(Operation::Commit, Fault::Failed(Conflict));
    }
    inbox.world.publish("ok");
    inbox.world.empty().await;
    assert!(inbox.world.since_start(Instant::now()) < SECOND, "no lease had to end");
    assert_eq!((attempts(&runs), inbox.inbox.effects()), (vec![1; 4], vec!["ok".to_owned()]));
    assert_eq!(inbox.world.record("ok").await.unwrap().lost, 0);
    let summary = worker.end().await;
    let counters = summary.counters();
    assert_eq!((counters.get(Counter::Conflicts), counters.get(Counter::StoreErrors)), (3, 0));
    assert_eq!((summary.handled(), counters.get(Counter::RunsFailed)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn conflicts_without_end_use_no_attempt_and_the_message_waits_between_its_tries() {
    use crate::error::ErrorKind::Conflict;
    for transaction_batch in [1, 16] {
        let (inbox, runs) = (Inbox::new(), Runs::default());
        let worker = inbox.start_with(&runs, |config| config.transaction_batch = transaction_batch);
        worker.store.refuse(Operation::Commit, Conflict);
        inbox.world.publish_all(["ok-1", "ok-2"]);
        tokio::time::sleep(60 * SECOND).await;
        assert!(attempts(&runs).iter().all(|attempt| *attempt == 1));
        let tries = runs.lock().unwrap().len();
        assert!((20..1000).contains(&tries), "{tries} runs in 60 s");
        worker.store.accept(Operation::Commit);
        inbox.world.empty().await;
        let mut effects = inbox.inbox.effects();
        effects.sort();
        assert_eq!(effects, ["ok-1", "ok-2"]);
        let summary = worker.end().await;
        assert_eq!((summary.handled(), summary.dead_lettered()), (2, 0));
        assert_eq!(summary.counters().get(Counter::RunsFailed), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_statement_met_another_transaction_runs_again_at_once() {
    for transaction_batch in [1, 16] {
        let (inbox, runs) = (Inbox::new(), Runs::default());
        let worker = inbox.start_with(&runs, |config| config.transaction_batch = transaction_batch);
        inbox.world.publish_all(["conflicts-1", "ok-2"]);
        inbox.world.empty().await;
        let mut effects = inbox.inbox.effects();
        effects.sort();
        assert_eq!(effects, ["conflicts-1", "ok-2"]);
        let count = |id: &str| runs.lock().unwrap().iter().filter(|(run, _)| run == id).count();
        assert_eq!((count("conflicts-1"), count("ok-2")), (2, 1));
        assert!(attempts(&runs).iter().all(|attempt| *attempt == 1));
        let summary = worker.end().await;
        let counters = summary.counters();
        assert_eq!((counters.get(Counter::Conflicts), counters.get(Counter::RunsFailed)), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_refused_for_a_missing_right_uses_no_attempt() {
    use crate::error::ErrorKind::Denied;
    for transaction_batch in [1, 16] {
        let (inbox, runs) = (Inbox::new(), Runs::default());
        let worker = inbox.start_with(&runs, |config| config.transaction_batch = transaction_batch);
        worker.store.refuse(Operation::Commit, Denied);
        inbox.world.publish_all(["ok-1", "ok-2"]);
        tokio::time::sleep(30 * SECOND).await;
        worker.store.accept(Operation::Commit);
        inbox.world.empty().await;
        assert_eq!(inbox.inbox.effects().len(), 2);
        assert!(attempts(&runs).iter().all(|attempt| *attempt == 1));
        let summary = worker.end().await;
        assert_eq!((summary.handled(), summary.dead_lettered()), (2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn runs_wait_for_a_transaction_and_the_store_is_not_blamed() {
    let (mut inbox, runs) = (Inbox::new(), Runs::default());
    inbox.inbox = inbox.inbox.with_transactions(4);
    let worker = inbox.start(&runs);
    let ids: Vec<String> = (0..32).map(|number| format!("slow-{number}")).collect();
    inbox.world.publish_all(ids.iter().map(String::as_str));
    inbox.world.empty().await;
    assert_eq!((inbox.inbox.effects().len(), inbox.inbox.most_open()), (32, 4));
    let summary = worker.end().await;
    let counters = summary.counters();
    assert_eq!((summary.handled(), counters.get(Counter::StoreErrors)), (32, 0));
    assert_eq!(counters.get(Counter::LeasesLost), 0, "leases are renewed while runs wait");
}

#[tokio::test(start_paused = true)]
async fn of_a_leaving_partition_no_run_starts_that_waited_for_a_transaction() {
    let (mut inbox, runs) = (Inbox::new(), Runs::default());
    inbox.world = World::with(Habits { partitions: 2, ..Habits::default() });
    inbox.inbox = MemoryInbox::new(inbox.world.store.clone()).with_transactions(1);
    let worker = inbox.start(&runs);
    for id in ["slow-first", "second"] {
        inbox.world.broker.publish_to(1, message(id));
    }
    tokio::time::sleep(SECOND).await;
    inbox.world.broker.leave(worker.connection, 1);
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!(inbox.inbox.effects(), ["slow-first"], "what ran is finished, and no more");
    assert!(matches!(inbox.world.state("second").await, KeyState::Absent));
    let second = inbox.start(&runs);
    inbox.world.empty().await;
    worker.end().await;
    second.end().await;
    assert_eq!(inbox.inbox.effects(), ["slow-first", "second"]);
}

#[tokio::test(start_paused = true)]
async fn runs_that_wait_for_a_transaction_do_not_start_once_the_handler_is_found_unavailable() {
    let (mut inbox, runs) = (Inbox::new(), Runs::default());
    inbox.inbox = inbox.inbox.with_transactions(1);
    let worker = inbox.start_with(&runs, |config| config.lease = 60 * SECOND);
    let ids: Vec<String> = (0..30).map(|number| format!("gone-{number}")).collect();
    inbox.world.publish_all(ids.iter().map(String::as_str));
    tokio::time::sleep(4 * SECOND).await;
    let tried = runs.lock().unwrap().len();
    assert!((3..=12).contains(&tried), "two runs open the breaker, the others are its probes: {tried}");
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back()), (0, 30));
}

#[tokio::test(start_paused = true)]
async fn a_commit_in_doubt_costs_a_marked_suspect_no_attempt() {
    let (inbox, runs) = (Inbox::new(), Runs::default());
    let _ = inbox.world.claim_elsewhere("ok", LEASE).await;
    tokio::time::sleep(LEASE).await;
    inbox.world.publish("ok");
    let worker = inbox.start(&runs);
    for _ in 0..4 {
        worker.store.next(Operation::Commit, Fault::Refused);
    }
    inbox.world.empty().await;
    assert_eq!((attempts(&runs), inbox.inbox.effects()), (vec![1; 5], vec!["ok".to_owned()]));
    assert_eq!(inbox.world.record("ok").await.unwrap().lost, 1);
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 0));
}
