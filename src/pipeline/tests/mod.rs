//! Checks the guarantees of the pipeline over a broker and a store in memory: [`World`] and its workers.
//!
//! Each test ends every worker through [`Worker::end`], which asserts that every delivery was accounted for.

mod brokers;
mod dead_letters;
mod duplicates;
mod failures;
mod forgotten_claims;
mod identities;
mod in_doubt;
mod keys;
mod lane_copies;
mod leases;
mod limits;
mod measures;
mod order;
mod outages;
mod own_headers;
mod partial_outages;
mod policies;
mod refusals;
mod replies;
mod secrets;
mod sequences;
mod shared_transactions;
mod shutdown;
mod sightings;
mod suspects;
mod transactions;
mod unavailable;
mod waiting;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{FutureExt, future::BoxFuture};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Pipeline, PipelineBuilder, Summary, config::PipelineConfig};
use crate::consumer::Capabilities;
use crate::dead_letter::DeadLetters;
use crate::error::Error;
use crate::extract::KeySource;
use crate::handler::{Handled, HandlerError, handler_fn};
use crate::key::{Fingerprint, Key, Scope};
use crate::message::{Message, MessageBuilder};
use crate::own_headers::OwnHeaders;
use crate::retry::{Backoff, Jitter, RetryPolicy};
use crate::store::{
    Claim, ClaimRequest, ClaimTerms, Entropy, KeyRecord, KeyState, Lease, MemoryStore, Store, StoreAdmin,
};
use crate::telemetry::{Counter, Counters, Observer};
use crate::testing::{
    FaultPlan, Faults, FaultyConsumer, FaultyStore, Habits, MemoryBroker, MemoryPublisher, Process,
};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// The lease that all workers use by default.
pub(super) const LEASE: Duration = Duration::from_secs(2);

/// One run of a handler, as seen from outside the system under test.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) id: String,
    pub(super) worker: u64,
    pub(super) attempt: u32,
    pub(super) fence: u64,
    pub(super) generation: u32,
    pub(super) started: Instant,
    /// When it returned, and what; `None` if it was dropped or goes on.
    pub(super) ended: Option<(Instant, Result<(), String>)>,
}

type Body = Arc<dyn Fn(Message) -> BoxFuture<'static, Handled> + Send + Sync>;

#[derive(Clone)]
struct Recorder {
    worker: u64,
    process: Process,
    runs: Arc<Mutex<Vec<Run>>>,
    body: Body,
}

async fn record(recorder: Recorder, message: Message) -> Handled {
    let index = {
        let mut runs = recorder.runs.lock().unwrap();
        runs.push(Run {
            id: id_of(&message),
            worker: recorder.worker,
            attempt: message.attempt(),
            fence: message.fence(),
            generation: message.generation(),
            started: Instant::now(),
            ended: None,
        });
        runs.len() - 1
    };
    let result = recorder.process.inside((recorder.body)(message)).await;
    let outcome = result.as_ref().copied().map_err(|error: &HandlerError| error.text().to_owned());
    recorder.runs.lock().unwrap()[index].ended = Some((Instant::now(), outcome));
    result
}

fn id_of(message: &Message) -> String {
    String::from_utf8_lossy(message.header("id").unwrap_or(message.payload())).into_owned()
}

/// A broker, a store and a dead-letter destination, shared by as many workers as a test starts.
pub(super) struct World {
    pub(super) scope: Scope,
    pub(super) broker: MemoryBroker,
    pub(super) store: MemoryStore,
    pub(super) letters: MemoryPublisher,
    runs: Arc<Mutex<Vec<Run>>>,
    workers: Mutex<u64>,
    started: Instant,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Habits::default())
    }

    pub(super) fn with(habits: Habits) -> Self {
        Self {
            scope: Scope::parse("billing").unwrap(),
            broker: MemoryBroker::new(habits),
            store: MemoryStore::starting_at(SECOND),
            letters: MemoryPublisher::new(),
            runs: Arc::default(),
            workers: Mutex::new(0),
            started: Instant::now(),
        }
    }

    /// Publishes a message whose key and payload are `id`.
    pub(super) fn publish(&self, id: &str) {
        self.broker.publish(message(id));
    }

    pub(super) fn publish_all<'a>(&self, ids: impl IntoIterator<Item = &'a str>) {
        ids.into_iter().for_each(|id| self.publish(id));
    }

    pub(super) fn key(&self, id: &str) -> Key {
        let keys = crate::extract::KeyExtractor::new(&self.scope, vec![KeySource::Header("id".into())]);
        keys.key_of(&message(id).build()).unwrap()
    }

    pub(super) async fn record(&self, id: &str) -> Option<KeyRecord> {
        self.store.inspect(&self.scope, &self.key(id)).await.unwrap()
    }

    pub(super) async fn state(&self, id: &str) -> KeyState {
        self.record(id).await.map_or(KeyState::Absent, |record| record.state)
    }

    /// Claims the key of `id` for another process, which then falls silent.
    pub(super) async fn claim_elsewhere(&self, id: &str, lease: Duration) -> Lease {
        let terms = ClaimTerms { lease, max_attempts: 3, ttl: 3600 * SECOND };
        let request = ClaimRequest {
            key: self.key(id),
            owner: Entropy::system().token(),
            fingerprint: Some(Fingerprint::of(id.as_bytes())),
            generation: 0,
        };
        match self.store.claim(&self.scope, &terms, &[request]).await.pop() {
            Some(Ok(Claim::Claimed(claimed))) => claimed.lease,
            other => panic!("{id} cannot be claimed: {other:?}"),
        }
    }

    pub(super) fn runs(&self) -> Vec<Run> {
        self.runs.lock().unwrap().clone()
    }

    pub(super) fn runs_of(&self, id: &str) -> Vec<Run> {
        self.runs().into_iter().filter(|run| run.id == id).collect()
    }

    pub(super) fn ids(&self) -> Vec<String> {
        self.runs().into_iter().map(|run| run.id).collect()
    }

    /// How long after the beginning of the test `at` was.
    pub(super) fn since_start(&self, at: Instant) -> Duration {
        at - self.started
    }

    /// A worker with the test's usual configuration, and a store handle with faults of its own.
    pub(super) fn worker(&self) -> WorkerBuilder<'_> {
        let mut workers = self.workers.lock().unwrap();
        *workers += 1;
        let process = Process::new();
        WorkerBuilder {
            world: self,
            number: *workers,
            store: FaultyStore::inside(self.store.clone(), Faults::NONE, &process),
            letters_to: self.letters.inside(Faults::NONE, &process),
            process,
            consumer: |_| {},
            config: PipelineConfig { seed: Some(*workers), ..config() },
            keys: vec![KeySource::Header("id".into())],
            letters: true,
            observer: None,
            scope: self.scope.clone(),
        }
    }

    /// Waits until the broker holds nothing more.
    pub(super) async fn empty(&self) {
        eventually("the broker is empty", || self.broker.depth() == 0).await;
    }
}

pub(super) fn message(id: &str) -> MessageBuilder {
    Message::builder(id.to_owned()).header("id", id.to_owned())
}

pub(super) fn config() -> PipelineConfig {
    PipelineConfig {
        lease: LEASE,
        ttl: 3600 * SECOND,
        handler_timeout: 10 * SECOND,
        cancel_grace: SECOND,
        drain_timeout: 10 * SECOND,
        store_timeout: SECOND,
        publish_timeout: SECOND,
        retry: RetryPolicy {
            max_attempts: 3,
            backoff: Backoff { initial: 50 * MS, max: 5 * SECOND, jitter: Jitter::None },
        },
        own_headers: OwnHeaders::trusted(),
        ..PipelineConfig::default()
    }
}

pub(super) struct WorkerBuilder<'w> {
    world: &'w World,
    number: u64,
    process: Process,
    pub(super) store: FaultyStore<MemoryStore>,
    letters_to: MemoryPublisher,
    /// The capabilities that the broker declares beyond its own.
    pub(super) consumer: fn(&mut Capabilities),
    pub(super) config: PipelineConfig,
    pub(super) keys: Vec<KeySource>,
    pub(super) letters: bool,
    pub(super) observer: Option<Arc<dyn Observer>>,
    pub(super) scope: Scope,
}

impl WorkerBuilder<'_> {
    pub(super) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(super) fn config(mut self, change: impl FnOnce(&mut PipelineConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Starts a worker whose handler is `body`.
    pub(super) fn start<F, Fut>(self, body: F) -> Worker
    where
        F: Fn(Message) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Handled> + Send + 'static,
    {
        let recorder = Recorder {
            worker: self.number,
            process: self.process.clone(),
            runs: Arc::clone(&self.world.runs),
            body: Arc::new(move |message| body(message).boxed()),
        };
        let (builder, worker) = self.pipeline();
        worker.run(builder.handler(handler_fn(recorder, record)).unwrap())
    }

    /// Everything but the handler.
    pub(super) fn pipeline(self) -> (PipelineBuilder<Arc<FaultyStore<MemoryStore>>>, Unstarted) {
        let consumer = self.world.broker.consumer();
        let number = consumer.number();
        let consumer = FaultyConsumer::new(consumer, &self.process).claiming(self.consumer);
        let broker = consumer.plan();
        let mut builder = Pipeline::builder(self.scope, consumer, Arc::new(self.store.clone()))
            .keys(self.keys)
            .config(self.config);
        if let Some(observer) = self.observer {
            builder = builder.observer(observer);
        }
        if self.letters {
            builder = builder.dead_letters(DeadLetters::new(Arc::new(self.letters_to.clone()), "dead"));
        }
        let connection = (self.world.broker.clone(), number);
        (
            builder,
            Unstarted {
                process: self.process,
                store: self.store,
                letters: self.letters_to,
                broker,
                connection,
            },
        )
    }

    pub(super) fn start_ok(self) -> Worker {
        self.start(|_| async { Ok(()) })
    }
}

/// The handles to a pipeline's parts, before it runs.
pub(super) struct Unstarted {
    process: Process,
    store: FaultyStore<MemoryStore>,
    letters: MemoryPublisher,
    broker: Arc<FaultPlan>,
    connection: (MemoryBroker, u64),
}

impl Unstarted {
    pub(super) fn run<G: super::Guarantee>(self, pipeline: Pipeline<G>) -> Worker {
        let shutdown = CancellationToken::new();
        let counters = pipeline.counters();
        let task = tokio::spawn(pipeline.run(shutdown.clone()));
        let Self { process, store, letters, broker, connection } = self;
        Worker { process, store, letters, broker, connection, counters, shutdown, task }
    }
}

/// A running pipeline, and the faults of its way to store, broker and dead-letter destination.
pub(super) struct Worker {
    pub(super) process: Process,
    pub(super) store: FaultyStore<MemoryStore>,
    pub(super) letters: MemoryPublisher,
    pub(super) broker: Arc<FaultPlan>,
    connection: (MemoryBroker, u64),
    pub(super) counters: Arc<Counters>,
    pub(super) shutdown: CancellationToken,
    pub(super) task: JoinHandle<Result<Summary, Error>>,
}

impl Worker {
    /// `kill -9`: no further step of this worker is seen outside, and the broker finds its connection gone.
    pub(super) fn die(self) {
        self.process.stop();
        self.task.abort();
        let (broker, number) = self.connection;
        broker.disconnect_consumer(number);
    }

    pub(super) fn count(&self, counter: Counter) -> u64 {
        self.counters.get(counter)
    }

    /// Shuts the worker down and checks its sums.
    pub(super) async fn end(self) -> Summary {
        self.shutdown.cancel();
        self.ended().await
    }

    /// Waits for the worker's end and checks its sums.
    pub(super) async fn ended(self) -> Summary {
        let summary = tokio::time::timeout(3600 * SECOND, self.task)
            .await
            .expect("the worker ends within an hour")
            .expect("the worker does not panic")
            .expect("the run succeeds");
        assert_accounted(summary.counters());
        summary
    }
}

/// I9: every delivery received was acked for a reason, refused or returned to the source.
#[track_caller]
pub(super) fn assert_accounted(counters: &Counters) {
    let ended = counters.ended();
    let detail: Vec<_> = Counters::ENDS.iter().map(|end| (end.name(), counters.get(*end))).collect();
    assert_eq!(counters.get(Counter::Received), ended, "received is not what ended: {detail:?}");
    assert_eq!((counters.in_flight(), counters.in_flight_bytes()), (0, 0), "something is still in flight");
}

/// Waits until `condition` holds, at most an hour of the virtual clock.
#[track_caller]
pub(super) fn eventually(what: &str, condition: impl Fn() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < 3600 * SECOND, "never came true at {caller}: {what}");
            tokio::time::sleep(5 * MS).await;
        }
    }
}
