//! Starts the tasks of a pipeline and ends them in the order that loses nothing.

use parking_lot::Mutex;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError};
use tokio_util::sync::CancellationToken;

use super::chance::Chance;
use super::config::PipelineConfig;
use super::context::{Context, RepeatedLines};
use super::dispatch::{Dispatcher, Drained};
use super::event::Event;
use super::gate::Gate;
use super::halt::Halt;
use super::heartbeat;
use super::intake::take_in;
use super::kept_alive::KeptAlive;
use super::measure::Measurer;
use super::receipt::SettleQueue;
use super::runner::Runner;
use super::settler::flush_all;
use super::slots::RunSlots;
use super::summary::Summary;
use super::takeovers::Takeovers;
use super::work::Work;
use crate::coalesce::{CALLS_IN_FLIGHT, Coalescer, Terms};
use crate::consumer::{Acker, Consumer};
use crate::dead_letter::DeadLetters;
use crate::error::{Error, ErrorKind};
use crate::extract::KeyExtractor;
use crate::janitor::Janitor;
use crate::key::Scope;
use crate::replies::Replies;
use crate::store::{CompleteRequest, Completion, Store};
use crate::telemetry::{Counter, Counters, Measure};

/// The parts that a builder has collected.
pub(crate) struct Parts {
    pub(crate) scope: Scope,
    pub(crate) consumer: Box<dyn Consumer>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keys: KeyExtractor,
    pub(crate) dead_letters: Option<DeadLetters>,
    pub(crate) replies: Option<Arc<dyn Replies>>,
    pub(crate) config: PipelineConfig,
    pub(crate) counters: Arc<Counters>,
    pub(crate) measurer: Measurer,
}

/// Runs a pipeline in tasks of its own, so that no step of the protocol lives only in a future that the caller may drop.
pub(crate) async fn run<R: Runner>(
    parts: Parts,
    runner: R,
    shutdown: CancellationToken,
) -> Result<Summary, Error> {
    // If this future is dropped, the guard starts the drain, which goes on in the task.
    let draining = shutdown.child_token();
    let _on_drop = draining.clone().drop_guard();
    let result = tokio::spawn(run_tasks(parts, runner, draining)).await;
    result.map_err(|error| ended("run the pipeline", &error))?
}

fn ended(operation: &'static str, error: &JoinError) -> Error {
    Error::new(ErrorKind::Internal, operation, format!("its task ended: {error}"))
}

async fn run_tasks<R: Runner>(
    parts: Parts,
    runner: R,
    draining: CancellationToken,
) -> Result<Summary, Error> {
    let (events_in, mut events) = mpsc::unbounded_channel();
    let (context, consumer) = share(parts, runner, events_in, draining);
    let acker = consumer.acker();
    context.counters.set_store_up(true);
    context.counters.set_limits(context.config.limits());
    context.counters.set_key_sources(context.keys.sources().map(ToString::to_string));
    if let Some(health) = consumer.health() {
        context.counters.set_source(health);
    }
    let flow = consumer.flow();
    let gate = Gate::new();
    let finish = CancellationToken::new();

    let helpers = start_helpers(&context, &acker);
    let settlements = SettleQueue::new();
    let settler = tokio::spawn(vital(
        context.draining.clone(),
        flush_all(Arc::clone(&context), Arc::clone(&settlements), acker, finish.clone()),
    ));
    let intake = tokio::spawn(vital(
        context.draining.clone(),
        take_in(Arc::clone(&context), Arc::clone(&gate), settlements, consumer),
    ));

    let dispatched = Dispatcher::new(Arc::clone(&context), gate, flow).run(&mut events);
    let drained = AssertUnwindSafe(dispatched).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("dispatcher panicked; the run ends, nothing in flight is acked");
        // Its deliveries were returned to the broker with it.
        context.counters.set_in_flight(0, 0);
        context.counters.set_waiting(0);
        Drained::Panicked
    });
    // The order from here on loses nothing: no more intake, then the last settlements, then the connection.
    context.draining.cancel();
    let received = intake.await.map_err(|error| ended("receive", &error));
    while let Ok(event) = events.try_recv() {
        if let Event::Arrived(works) = event {
            give_back(&context, works);
        }
    }
    finish.cancel();
    let settled = settler.await.map_err(|error| ended("settle", &error));
    drop(helpers);
    context.measurer.report(&context.counters);
    let (mut consumer, received) = received?;
    if let Err(error) = consumer.close().await {
        tracing::warn!(?error, "closing the source failed");
    }
    received?;
    settled?;
    let abandoned_runs = match drained {
        Drained::Wholly => 0,
        Drained::Abandoned(runs) => runs,
        Drained::Panicked => {
            let what = "a task panicked; the broker redelivers what was not settled";
            return Err(Error::new(ErrorKind::Internal, "run the pipeline", what));
        }
    };
    let counters = Arc::clone(&context.counters);
    Ok(Summary { parked: counters.get(Counter::Parked), counters, abandoned_runs })
}

/// The tasks beside the deliveries; they end when the answer is dropped.
fn start_helpers<R: Runner>(context: &Arc<Context<R>>, acker: &Arc<dyn Acker>) -> (Janitor, Abort, Abort) {
    let report = context.measurer.clone().report_each_second(Arc::clone(&context.counters));
    let heartbeat = heartbeat::beat(Arc::clone(context), Arc::clone(acker));
    (
        Janitor::start(Arc::clone(&context.store), Arc::clone(&context.counters)),
        Abort(tokio::spawn(report).abort_handle()),
        Abort(tokio::spawn(vital(context.draining.clone(), heartbeat)).abort_handle()),
    )
}

/// What all tasks share, and the consumer, whose one owner is the intake.
pub(super) fn share<R: Runner>(
    parts: Parts,
    runner: R,
    events: mpsc::UnboundedSender<Event>,
    draining: CancellationToken,
) -> (Arc<Context<R>>, Box<dyn Consumer>) {
    let Parts { scope, consumer, store, keys, dead_letters, replies, config, counters, measurer } = parts;
    let context = Context {
        completions: start_completions(&scope, &store, &config, &counters, &measurer),
        capabilities: consumer.capabilities(),
        chance: Mutex::new(Chance::new(config.seed)),
        kept_alive: KeptAlive::default(),
        slots: claims_go_ahead::<R>(&config).then(|| RunSlots::new(config.concurrency)),
        events,
        halt: Halt::new(),
        takeovers: Mutex::new(Takeovers::default()),
        successes: AtomicU64::new(0),
        giving_up: CancellationToken::new(),
        log: RepeatedLines::default(),
        draining,
        scope,
        keys,
        store,
        runner,
        dead_letters,
        replies,
        config,
        counters,
        measurer,
    };
    (Arc::new(context), consumer)
}

fn claims_go_ahead<R: Runner>(config: &PipelineConfig) -> bool {
    let by_one = R::NEEDS_CLAIM || config.rate_limit.is_some() || config.adaptive_concurrency;
    config.claims_ahead > 0 && !by_one
}

/// A task without which the others would wait forever: if it panics, the run ends.
fn vital<T>(draining: CancellationToken, task: impl Future<Output = T>) -> impl Future<Output = T> {
    struct OnPanic(CancellationToken);

    impl Drop for OnPanic {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.cancel();
            }
        }
    }

    let on_panic = OnPanic(draining);
    async move {
        let _on_panic = on_panic;
        task.await
    }
}

fn give_back<R>(context: &Context<R>, works: Vec<Work>) {
    let mut ends = context.ends();
    works.iter().for_each(|work| ends.add(&work.message, Counter::GivenBack));
    drop(ends);
    drop(works);
}

fn start_completions(
    scope: &Scope,
    store: &Arc<dyn Store>,
    config: &PipelineConfig,
    counters: &Arc<Counters>,
    measurer: &Measurer,
) -> Coalescer<CompleteRequest, Completion> {
    let (scope, store, counters) = (scope.clone(), Arc::clone(store), Arc::clone(counters));
    let measurer = measurer.clone();
    let terms = Terms {
        operation: "complete keys",
        max_batch: config.max_batch,
        limit: config.store_timeout,
        calls_in_flight: CALLS_IN_FLIGHT,
        // A key is under way once in a pipeline.
        clashes: |_, _| false,
    };
    Coalescer::start(terms, move |batch: Vec<CompleteRequest>| {
        let (scope, store, counters) = (scope.clone(), Arc::clone(&store), Arc::clone(&counters));
        let measurer = measurer.clone();
        async move {
            let answers = measurer.timed(Measure::Complete, store.complete(&scope, &batch)).await;
            counters
                .add(Counter::StoreErrors, answers.iter().filter(|answer| answer.is_err()).count() as u64);
            answers
        }
    })
}

/// Ends a task when it goes out of scope.
struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}
