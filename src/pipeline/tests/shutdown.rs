//! Ends: in order, at a deadline, and by being dropped.

use std::sync::atomic::{AtomicBool, Ordering as Atomic};

use super::*;
use crate::consumer::{Acker, Consumer, FlowControl};
use crate::delivery::Delivery;
use crate::pipeline::config::Ordering;
use crate::testing::{Fault, Operation};

#[tokio::test(start_paused = true)]
async fn c34_a_shutdown_under_load_finishes_what_runs_and_gives_the_rest_back_without_claims() {
    let world = World::new();
    let ids: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    world.publish_all(ids.iter().map(String::as_str));
    let worker = world.worker().config(|config| config.concurrency = 32).start(|_| async {
        tokio::time::sleep(SECOND).await;
        Ok(())
    });
    tokio::time::sleep(2500 * MS).await;
    let asked = Instant::now();
    let summary = worker.end().await;
    assert!(asked.elapsed() <= SECOND, "{:?}", asked.elapsed());
    assert_eq!((summary.handled(), summary.given_back(), summary.abandoned_runs()), (96, 404, 0));
    assert_eq!((world.broker.acked(), world.broker.depth()), (96, 404));
    assert_eq!(world.store.stats(&world.scope).await.unwrap().get(KeyState::Pending), 0);
    let second = world.worker().start_ok();
    let restarted = Instant::now();
    world.empty().await;
    assert!(restarted.elapsed() < LEASE / 2, "no wait for a lease: {:?}", restarted.elapsed());
    let second = second.end().await;
    assert_eq!((second.handled(), world.runs().len()), (404, 500));
}

#[tokio::test(start_paused = true)]
async fn rule_12_claims_under_way_when_the_drain_begins_are_released_unstarted() {
    let world = World::new();
    world.publish_all(["a", "b"]);
    let worker = world.worker();
    worker.store.next(Operation::Claim, Fault::ReplyLate(500 * MS));
    let worker = worker.start_ok();
    tokio::time::sleep(100 * MS).await;
    let summary = worker.end().await;
    assert!(world.runs().is_empty(), "a drain starts nothing");
    assert_eq!((summary.handled(), summary.given_back()), (0, 2));
    let record = world.record("a").await.unwrap();
    assert_eq!((record.state, record.attempts, record.lost), (KeyState::Absent, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn c35_a_handler_that_never_returns_does_not_keep_the_process_and_is_not_acked() {
    let world = World::new();
    world.publish_all(["hangs", "hangs", "a"]);
    let worker =
        world.worker().config(|config| config.handler_timeout = 3600 * SECOND).start(|message| async move {
            if id_of(&message) == "hangs" {
                std::future::pending::<()>().await;
            }
            Ok(())
        });
    tokio::time::sleep(SECOND).await;
    let asked = Instant::now();
    let summary = worker.end().await;
    let took = asked.elapsed();
    assert!(took >= 10 * SECOND && took <= 12 * SECOND, "{took:?}");
    assert_eq!((summary.handled(), summary.abandoned_runs()), (1, 1));
    assert_eq!(summary.given_back(), 2, "the hanging one and its copy");
    assert_eq!((world.broker.acked(), world.broker.depth()), (1, 2));
    assert_eq!(world.state("hangs").await, KeyState::Pending, "whoever takes it waits for the lease");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_heeds_its_cancellation_at_the_drain_deadline_is_recorded() {
    let world = World::new();
    world.publish("long");
    let worker =
        world.worker().config(|config| config.handler_timeout = 3600 * SECOND).start(|message| async move {
            message.cancellation().cancelled().await;
            Err(HandlerError::retry("told to stop"))
        });
    tokio::time::sleep(SECOND).await;
    let summary = worker.end().await;
    assert_eq!((summary.abandoned_runs(), summary.given_back()), (1, 1), "cut, and recorded");
    assert_eq!(world.state("long").await, KeyState::Failed, "another worker may run it at once");
}

#[tokio::test(start_paused = true)]
async fn rule_13_the_end_is_bounded_though_neither_store_nor_broker_answers() {
    let world = World::new();
    world.publish_all(["a", "b"]);
    let worker = world.worker().start_ok();
    for _ in 0..100 {
        worker.store.next(Operation::Complete, Fault::Hangs);
        worker.broker.next(Operation::Settle, Fault::Hangs);
    }
    tokio::time::sleep(SECOND).await;
    let asked = Instant::now();
    let summary = worker.end().await;
    assert!(asked.elapsed() <= 20 * SECOND, "{:?}", asked.elapsed());
    assert_eq!((world.broker.acked(), summary.handled()), (0, 0));
    assert_eq!(summary.counters().get(Counter::SuspectedDoubleEffects), 2);
}

#[tokio::test(start_paused = true)]
async fn rule_12_dropping_the_run_future_drains_in_the_background() {
    let world = World::new();
    world.publish_all(["a", "b"]);
    let worker = world.worker().config(|config| config.concurrency = 1).start(|_| async {
        tokio::time::sleep(SECOND).await;
        Ok(())
    });
    tokio::time::sleep(500 * MS).await;
    worker.task.abort();
    tokio::time::sleep(5 * SECOND).await;
    // The messages that ran are completed and acked; those that waited were returned.
    assert_eq!((world.broker.acked(), world.broker.depth(), world.runs().len()), (1, 1, 1));
    assert_eq!((world.state("a").await, world.state("b").await), (KeyState::Completed, KeyState::Absent));
    assert_accounted(&worker.counters);
}

#[test]
fn rule_12_a_dropped_runtime_acks_nothing_that_is_not_completed() {
    let store = MemoryStore::starting_at(SECOND);
    let broker = MemoryBroker::new(Habits::default());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new();
        (world.store, world.broker) = (store.clone(), broker.clone());
        world.publish_all(["a", "b"]);
        let worker = world.worker().start(|message| async move {
            if id_of(&message) == "b" {
                std::future::pending::<()>().await;
            }
            Ok(())
        });
        tokio::time::sleep(100 * MS).await;
        drop(worker);
    });
    drop(runtime);
    assert_eq!((broker.acked(), broker.depth()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_gives_lanes_and_retries_back_in_order() {
    let world = World::new();
    for number in 1..=6 {
        world.broker.publish(message(&format!("A#{number}")).order_key("A"));
    }
    let worker =
        world.worker().config(|config| config.ordering = Ordering::BrokerKey).start(|message| async move {
            if id_of(&message) == "A#2" {
                Err(HandlerError::retry_after(60 * SECOND, "later"))
            } else {
                Ok(())
            }
        });
    tokio::time::sleep(SECOND).await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back()), (1, 5));
    let second = world.worker().config(|config| config.ordering = Ordering::BrokerKey).start_ok();
    world.empty().await;
    assert_eq!(world.ids(), ["A#1", "A#2", "A#2", "A#3", "A#4", "A#5", "A#6"]);
    let _ = second.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_for_good_ends_the_run_with_its_error_after_what_runs_is_settled() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().start(|_| async {
        tokio::time::sleep(SECOND).await;
        Ok(())
    });
    tokio::time::sleep(100 * MS).await;
    worker.broker.next(Operation::Receive, Fault::Denied);
    // The receive under way ends with this one; the next fails.
    world.publish("b");
    let error = worker.task.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), crate::error::ErrorKind::Denied);
    assert_eq!((world.broker.acked(), world.broker.depth()), (1, 1));
    assert_eq!((world.state("a").await, world.runs().len()), (KeyState::Completed, 1));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_for_a_while_is_asked_again_without_haste() {
    let world = World::new();
    let worker = world.worker().start_ok();
    world.publish("a");
    world.empty().await;
    worker.broker.go_down();
    // The receive that is under way ends with the message; the next ones fail.
    world.publish("b");
    tokio::time::sleep(60 * SECOND).await;
    let asked = worker.broker.calls(Operation::Receive);
    assert!((10..=40).contains(&asked), "{asked} receives in 60 s");
    worker.broker.come_up();
    world.publish("c");
    world.empty().await;
    let summary = worker.end().await;
    assert!(summary.counters().get(Counter::ReceiveErrors) > 5);
    assert_eq!(world.runs().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn until_idle_ends_when_nothing_is_left_and_not_while_a_retry_waits_in_the_broker() {
    let world = World::with(Habits { delayed_retry: true, ..Habits::default() });
    world.publish_all(["a", "b"]);
    let worker = world
        .worker()
        .config(|config| {
            config.until_idle = true;
            config.retry.backoff.initial = 20 * SECOND;
            config.retry.backoff.max = 20 * SECOND;
        })
        .start(|message| async move {
            match (id_of(&message).as_str(), message.attempt()) {
                ("b", 1) => Err(HandlerError::retry("not yet")),
                _ => Ok(()),
            }
        });
    let summary = worker.ended().await;
    assert_eq!((summary.handled(), summary.given_back(), world.broker.depth()), (2, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn until_idle_waits_for_running_handlers_and_ends_beside_parked_messages() {
    let world = World::new();
    world.publish_all(["slow", "bad"]);
    let worker = world
        .worker()
        .config(|config| {
            config.until_idle = true;
            config.policies.on_exhausted = crate::pipeline::config::OnExhausted::Park;
        })
        .start(|message| async move {
            if id_of(&message) == "bad" {
                return Err(HandlerError::permanent("broken"));
            }
            tokio::time::sleep(8 * SECOND).await;
            Ok(())
        });
    let summary = worker.ended().await;
    assert_eq!((summary.handled(), summary.parked(), world.broker.depth()), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn until_idle_is_refused_where_it_would_never_end() {
    let built = |habits: Habits, change: fn(&mut Capabilities), until_idle| {
        let world = World::with(habits);
        let worker = world.worker().with(|worker| worker.consumer = change);
        let worker = worker.config(|config| config.until_idle = until_idle);
        worker.pipeline().0.handler(handler_fn((), |(), _| async { Ok(()) })).map(drop)
    };
    let silent: fn(&mut Capabilities) = |capabilities| capabilities.reports_idle = false;
    let refused = built(Habits::default(), silent, true).expect_err("it is refused");
    assert!(refused.to_string().contains("the source cannot report that"), "{refused}");
    let finite = Habits { finite: true, ..Habits::default() };
    for (habits, change, until_idle) in
        [(Habits::default(), silent, false), (finite, silent, true), (Habits::default(), |_| (), true)]
    {
        built(habits, change, until_idle).expect("a pipeline");
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_a_run_ends_with_it() {
    let world = World::new();
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    for _ in 0..3 {
        world.publish_all(["a", "b", "c"]);
        let worker = world.worker().start_ok();
        world.empty().await;
        let _ = worker.end().await;
    }
    tokio::time::sleep(SECOND).await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), before, "tasks are left");
}

#[tokio::test(start_paused = true)]
async fn rule_1_a_completion_still_unknown_at_the_drain_deadline_is_given_back_not_acked() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().start(|_| async {
        tokio::time::sleep(SECOND).await;
        Ok(())
    });
    tokio::time::sleep(500 * MS).await;
    worker.store.go_down();
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back()), (0, 1));
    assert_eq!((world.broker.acked(), world.broker.depth()), (0, 1));
    assert_eq!(summary.counters().get(Counter::SuspectedDoubleEffects), 1);
}

/// A consumer whose flow control has a fault: it panics in the dispatcher.
struct Broken<C> {
    inner: C,
    closed: Arc<AtomicBool>,
}

struct BrokenFlow;

impl FlowControl for BrokenFlow {
    fn pause(&self, _epoch: u64) {
        panic!("a fault of the adapter");
    }

    fn resume(&self, _epoch: u64) {}
}

#[async_trait::async_trait]
impl<C: Consumer + Sync> Consumer for Broken<C> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn acker(&self) -> Arc<dyn Acker> {
        self.inner.acker()
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        self.inner.receive().await
    }

    fn flow(&self) -> Option<Arc<dyn FlowControl>> {
        Some(Arc::new(BrokenFlow))
    }

    async fn close(&mut self) -> Result<(), Error> {
        self.closed.store(true, Atomic::SeqCst);
        self.inner.close().await
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_panic_of_the_dispatcher_the_source_is_closed_and_no_task_is_left() {
    let world = World::new();
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let closed = Arc::new(AtomicBool::new(false));
    let consumer = Broken { inner: world.broker.consumer(), closed: Arc::clone(&closed) };
    let pipeline = Pipeline::builder(world.scope.clone(), consumer, Arc::new(world.store.clone()))
        .keys([KeySource::Header("id".into())])
        .config(PipelineConfig { max_waiting_per_partition: Some(1), ..config() })
        .dead_letters(DeadLetters::new(Arc::new(world.letters.clone()), "dead"))
        .handler(handler_fn((), |(), message: Message| async move {
            if id_of(&message) == "ok" { Ok(()) } else { Err(HandlerError::retry_after(SECOND, "not yet")) }
        }))
        .unwrap();
    let shutdown = CancellationToken::new();
    let run = tokio::spawn(pipeline.run(shutdown.clone()));
    world.publish("ok");
    eventually("it is done", || world.broker.acked() == 1).await;
    world.publish("waits");
    let ended = tokio::time::timeout(60 * SECOND, run).await.expect("it ends").unwrap();
    let error = ended.expect_err("a fault is reported");
    assert!(error.to_string().contains("panicked"), "{error}");
    assert!(closed.load(Atomic::SeqCst), "the source is closed");
    assert!(!shutdown.is_cancelled(), "the caller's token is its own");
    assert_eq!((world.broker.depth(), world.broker.unsettled()), (1, 0), "what was under way is back");
    tokio::time::sleep(SECOND).await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), before, "tasks are left");
}
