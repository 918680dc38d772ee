//! Plays one plan from its beginning to its end, and has the witness judge it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onceward::adapter::StoreAdmin;
use onceward::store::{KeyState, ListQuery};
use onceward::telemetry::{Counter, Counters};
use onceward::testing::{
    Faults, FaultyConsumer, FaultyStore, MemoryBroker, MemoryConsumer, MemoryInbox, MemoryPublisher, Process,
};
use onceward::{
    DeadLetters, Error, Key, KeyExtractor, KeySource, MemoryStore, Message, Pipeline, PipelineConfig, Scope,
    Summary, handler_fn, tx_handler,
};
use onceward_test_support::ledger::Produced;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bugs::{Bug, Planted, PlantedPublisher};
use crate::handlers::{Script, plain, transactional};
use crate::plan::{Behaviour, Plan, Trouble};
use crate::watched::{Books, Lanes, WatchedConsumer, WatchedStore};
use crate::witness::{Outcome, Witness};

/// After the last trouble, everything is settled within this.
const RECOVERY: Duration = Duration::from_secs(20 * 60);

type Task = JoinHandle<Result<Summary, Error>>;

struct World {
    plan: Plan,
    bug: Option<Bug>,
    witness: Witness,
    scope: Scope,
    keys: KeyExtractor,
    broker: MemoryBroker,
    inbox: MemoryInbox,
    store: Planted,
    letters: MemoryPublisher,
    lives: u64,
    deaths: usize,
    /// The living, by their place.
    workers: Vec<Option<Worker>>,
    /// Those that died or were asked to end, and how long they may take for it.
    ended: Vec<(u64, Instant, Task)>,
    counters: Vec<Arc<Counters>>,
}

struct Worker {
    number: u64,
    connection: u64,
    process: Process,
    store: FaultyStore<WatchedStore>,
    letters: MemoryPublisher,
    shutdown: CancellationToken,
    task: Task,
}

/// Runs a seed on a clock of its own. `tells`: record a readable story.
pub(crate) fn simulate(seed: u64, bug: Option<Bug>, tells: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async move {
        let mut world = World::new(Plan::draw(seed), bug, tells);
        world.play().await;
        world.judge().await
    })
}

impl World {
    fn new(plan: Plan, bug: Option<Bug>, tells: bool) -> Self {
        let scope = Scope::parse("simulated").expect("a scope");
        let inbox = MemoryInbox::new(MemoryStore::starting_at(Duration::from_secs(1)));
        let witness = Witness::new(plan.config.lease, tells);
        witness.trace(0, "plan", &plan);
        Self {
            broker: MemoryBroker::new(plan.habits.clone()),
            store: Planted::new(inbox.clone(), bug),
            keys: KeyExtractor::new(&scope, vec![KeySource::PayloadHash]),
            letters: MemoryPublisher::new(),
            lives: 0,
            deaths: 0,
            workers: (0..plan.workers).map(|_| None).collect(),
            ended: Vec::new(),
            counters: Vec::new(),
            plan,
            bug,
            witness,
            scope,
            inbox,
        }
    }

    fn message(id: &str, order_key: Option<&str>) -> onceward::MessageBuilder {
        let message = Message::builder(id.to_owned());
        match order_key {
            Some(key) => message.order_key(key.to_owned()),
            None => message,
        }
    }

    fn key_of(keys: &KeyExtractor, id: &str) -> Key {
        keys.key_of(&Self::message(id, None).build()).expect("every payload has a hash")
    }

    async fn play(&mut self) {
        let workers = self.workers.len();
        (0..workers).for_each(|place| self.start(place));
        let mut agenda: BTreeMap<Duration, Vec<Step>> = BTreeMap::new();
        let mut note = |at: Duration, step| agenda.entry(at).or_default().push(step);
        for (index, message) in self.plan.messages.iter().enumerate() {
            note(message.at, Step::Publish(index));
        }
        for (at, trouble) in &self.plan.troubles {
            note(*at, Step::Begins(*trouble));
            let lasts = match trouble {
                Trouble::Death { replaced_after, .. } => *replaced_after,
                Trouble::Pause { lasts, .. }
                | Trouble::Outage { lasts }
                | Trouble::NodeDown { lasts }
                | Trouble::Leaves { lasts, .. }
                | Trouble::LettersDown { lasts } => *lasts,
                Trouble::Restart { .. } | Trouble::Disconnect | Trouble::StoreCrash => continue,
            };
            note(*at + lasts, Step::Ends(*trouble));
        }
        let start = Instant::now();
        for (at, steps) in agenda {
            tokio::time::sleep_until(start + at).await;
            for step in steps {
                self.step(step).await;
            }
        }
        tokio::time::sleep_until(start + self.plan.healed_at).await;
        self.heal();
        self.finish().await;
    }

    fn start(&mut self, place: usize) {
        self.lives += 1;
        let number = self.lives;
        let process = Process::new();
        let watched =
            WatchedStore { inner: self.store.clone(), witness: self.witness.clone(), worker: number };
        let seeded = |faults: Faults| Faults { seed: faults.seed.wrapping_add(number), ..faults };
        let store = FaultyStore::inside(watched, seeded(self.plan.store_faults), &process);
        let letters = self.letters.inside(seeded(self.plan.letter_faults), &process);
        let consumer = self.broker.consumer();
        let connection = consumer.number();
        let keys = self.keys.clone();
        let books = Books {
            witness: self.witness.clone(),
            worker: number,
            scope: self.scope.clone(),
            inbox: self.inbox.clone(),
            letters: self.letters.clone(),
            key_of: Box::new(move |id| Self::key_of(&keys, id)),
            ids: Mutex::default(),
            lanes: Lanes::new(self.plan.config.ordering.clone()),
        };
        let shutdown = CancellationToken::new();
        let consumer = self.consumer(consumer, books, &process);
        let task = self.spawn(number, &process, &store, &letters, consumer, &shutdown);
        self.witness.trace(number, "starts", place);
        self.workers[place] = Some(Worker { number, connection, process, store, letters, shutdown, task });
    }

    fn consumer(
        &self,
        inner: MemoryConsumer,
        books: Books,
        process: &Process,
    ) -> FaultyConsumer<WatchedConsumer> {
        let broker = self.broker.clone();
        FaultyConsumer::new(WatchedConsumer { inner, broker, books: Arc::new(books), bug: self.bug }, process)
    }

    fn spawn(
        &mut self,
        number: u64,
        process: &Process,
        store: &FaultyStore<WatchedStore>,
        letters: &MemoryPublisher,
        consumer: FaultyConsumer<WatchedConsumer>,
        shutdown: &CancellationToken,
    ) -> Task {
        let script = Script {
            worker: number,
            process: process.clone(),
            witness: self.witness.clone(),
            behaviours: Arc::new(self.plan.behaviours.clone()),
            bug: self.bug,
        };
        let seed = self.plan.config.seed.map(|seed| seed.wrapping_mul(1000).wrapping_add(number));
        let publisher = PlantedPublisher { inner: letters.clone(), bug: self.bug };
        let builder = Pipeline::builder(self.scope.clone(), consumer, Arc::new(store.clone()))
            .key_extractor(self.keys.clone())
            .config(PipelineConfig { seed, ..self.plan.config.clone() })
            .dead_letters(DeadLetters::new(Arc::new(publisher), "dead"));
        if self.plan.transactional {
            let handler = tx_handler(store, script, transactional);
            let pipeline = builder.transactional_handler(handler).expect("a sound configuration");
            self.counters.push(pipeline.counters());
            tokio::spawn(pipeline.run(shutdown.clone()))
        } else {
            let pipeline = builder.handler(handler_fn(script, plain)).expect("a sound configuration");
            self.counters.push(pipeline.counters());
            tokio::spawn(pipeline.run(shutdown.clone()))
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Publish(index) => self.publish(index),
            Step::Begins(trouble) => {
                self.witness.trace(0, "begins", trouble);
                match trouble {
                    Trouble::Death { worker, .. } => self.die(worker),
                    Trouble::Pause { worker, lasts } => {
                        if let Some(worker) = &self.workers[worker] {
                            worker.process.stop();
                            self.witness.befalls(worker.number, lasts);
                        }
                    }
                    Trouble::Restart { worker } => self.restart(worker).await,
                    Trouble::Outage { lasts } => {
                        for worker in self.workers.iter().flatten() {
                            worker.store.go_down();
                            self.witness.befalls(worker.number, lasts);
                        }
                    }
                    Trouble::NodeDown { lasts } => {
                        for worker in self.workers.iter().flatten() {
                            worker.store.cut_off(Some(|key| key.as_bytes()[0].is_multiple_of(3)));
                            self.witness.befalls(worker.number, lasts);
                        }
                    }
                    Trouble::Leaves { worker, partition, .. } => {
                        if let Some(worker) = &self.workers[worker] {
                            self.broker.leave(worker.connection, partition);
                            self.witness.leaves(worker.number, partition);
                        }
                    }
                    Trouble::Disconnect => self.broker.disconnect(),
                    Trouble::StoreCrash => {
                        for lease in self.inbox.crash().await {
                            self.witness.forgotten(lease.key, lease.fence, self.plan.transactional);
                        }
                    }
                    Trouble::LettersDown { .. } => {
                        self.workers.iter().flatten().for_each(|worker| worker.letters.go_down());
                    }
                }
            }
            Step::Ends(trouble) => {
                self.witness.trace(0, "ends", trouble);
                match trouble {
                    Trouble::Death { worker, .. } => {
                        if self.workers[worker].is_none() {
                            self.start(worker);
                        }
                    }
                    Trouble::Pause { worker, .. } => {
                        self.workers[worker].iter().for_each(|worker| worker.process.resume());
                    }
                    Trouble::Outage { .. } => {
                        self.workers.iter().flatten().for_each(|worker| worker.store.come_up());
                    }
                    Trouble::NodeDown { .. } => {
                        self.workers.iter().flatten().for_each(|worker| worker.store.cut_off(None));
                    }
                    Trouble::LettersDown { .. } => {
                        self.workers.iter().flatten().for_each(|worker| worker.letters.come_up());
                    }
                    Trouble::Leaves { worker, partition, .. } => {
                        self.workers[worker].iter().for_each(|worker| self.assign(worker, partition));
                    }
                    Trouble::Restart { .. } | Trouble::Disconnect | Trouble::StoreCrash => {}
                }
            }
        }
    }

    /// Assigns a partition again that has left the worker.
    fn assign(&self, worker: &Worker, partition: u32) {
        self.witness.stays(worker.number, partition);
        self.broker.assign(worker.connection, partition);
    }

    fn publish(&self, index: usize) {
        let planned = &self.plan.messages[index];
        let key = Self::key_of(&self.keys, &planned.id);
        // Copies, and the messages of an order key, are in one partition.
        let placed_by = planned.order_key.as_deref().unwrap_or(&planned.id);
        let sum: u32 = placed_by.bytes().map(u32::from).sum();
        let partition = sum % self.plan.habits.partitions;
        let produced = Produced {
            key: planned.id.clone(),
            order_key: match self.plan.config.ordering {
                onceward::pipeline::config::Ordering::Partition => Some(partition.to_string()),
                _ => planned.order_key.clone(),
            },
            confirmed: true,
        };
        self.witness.produced(key, produced);
        self.witness.trace(0, "published", &planned.id);
        self.broker.publish_to(partition, Self::message(&planned.id, planned.order_key.as_deref()));
    }

    /// No further step of the worker is visible outside. Its remaining tasks end by themselves, which is checked.
    fn die(&mut self, place: usize) {
        let Some(worker) = self.workers[place].take() else { return };
        self.deaths += 1;
        worker.process.stop();
        self.witness.runs_die(worker.number);
        self.witness.befalls(worker.number, Duration::MAX);
        self.broker.disconnect_consumer(worker.connection);
        self.let_end(worker);
    }

    async fn restart(&mut self, place: usize) {
        let Some(worker) = self.workers[place].take() else { return };
        self.witness.befalls(worker.number, Duration::MAX);
        self.let_end(worker);
        self.start(place);
    }

    fn let_end(&mut self, worker: Worker) {
        let config = &self.plan.config;
        // Drain, grace, the calls under way, and the last settlements.
        let bound = config.drain_timeout
            + config.cancel_grace
            + 12 * config.store_timeout
            + config.publish_timeout
            + Duration::from_secs(15);
        worker.shutdown.cancel();
        self.ended.push((worker.number, Instant::now() + bound, worker.task));
    }

    /// From here on all is well.
    fn heal(&mut self) {
        self.witness.trace(0, "healed", ());
        for worker in self.workers.iter().flatten() {
            worker.process.resume();
            worker.store.come_up();
            worker.store.cut_off(None);
            worker.store.set(Faults::NONE);
            worker.letters.come_up();
            worker.letters.set(Faults::NONE);
            (0..self.plan.habits.partitions).for_each(|partition| self.assign(worker, partition));
        }
        for place in 0..self.workers.len() {
            if self.workers[place].is_none() {
                self.start(place);
            }
        }
    }

    async fn finish(&mut self) {
        let deadline = Instant::now() + RECOVERY;
        while self.broker.depth() > 0 {
            if Instant::now() > deadline {
                let left = self.broker.depth();
                self.witness
                    .violated(format!("I7: {left} messages are left {RECOVERY:?} after the last trouble"));
                break;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let workers: Vec<_> = self.workers.iter_mut().filter_map(Option::take).collect();
        workers.into_iter().for_each(|worker| self.let_end(worker));
        for (number, deadline, task) in std::mem::take(&mut self.ended) {
            match tokio::time::timeout_at(deadline, task).await {
                Err(_) => self.witness.violated(format!("I8: worker {number} did not end in time")),
                Ok(Err(error)) => self.witness.violated(format!("worker {number} panicked: {error}")),
                Ok(Ok(Err(error))) => self.witness.violated(format!("worker {number} failed: {error}")),
                Ok(Ok(Ok(_))) => {}
            }
        }
    }

    async fn judge(self) -> Outcome {
        // Tasks that were released take a moment to notice.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let alive = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        if alive > 0 {
            self.witness.violated(format!("I8: {alive} tasks are left"));
        }
        let query = ListQuery { state: None, after: None, limit: 10_000 };
        let records = self.inbox.list(&self.scope, &query).await.expect("the memory store answers");
        let sent = self.letters.sent();
        let letters: Vec<String> =
            sent.iter().map(|letter| String::from_utf8_lossy(&letter.payload).into_owned()).collect();
        for record in records {
            let is_left = match record.state {
                KeyState::Completed | KeyState::Dead => false,
                // A confirmed letter allows the ack; the mark may have been cut off by the end of its worker.
                KeyState::Terminal => !letters.iter().any(|id| Self::key_of(&self.keys, id) == record.key),
                _ => true,
            };
            if is_left {
                self.witness.violated(format!("I8: a key is left {:?}", record.state));
            }
        }
        // Without a death or a lapse, only a verdict about a message ends it in the dead letters.
        if self.plan.is_calm() {
            for id in &letters {
                if matches!(self.plan.behaviours.get(id), Some(Behaviour::Unavailable(_))) {
                    self.witness.violated(format!("{id} is blamed for a handler that was unavailable"));
                }
            }
        }
        let mut duplicates = 0;
        let mut suspected = 0;
        for (number, counters) in (1..).zip(&self.counters) {
            duplicates += counters.get(Counter::Duplicates) + counters.get(Counter::DuplicatesOfDead);
            suspected += counters.get(Counter::SuspectedDoubleEffects);
            let ended = counters.ended();
            let received = counters.get(Counter::Received);
            if received != ended || counters.in_flight() != 0 || counters.in_flight_bytes() != 0 {
                let in_flight = counters.in_flight();
                self.witness.violated(format!(
                    "I9: worker {number} received {received}, ended {ended}, {in_flight} in flight"
                ));
            }
        }
        let committed = self.plan.transactional.then(|| self.inbox.effects());
        self.witness.judge(&letters, committed.as_deref(), self.plan.keeps_order());
        Outcome { dead: letters.len(), duplicates, suspected, deaths: self.deaths, ..self.witness.outcome() }
    }
}

#[derive(Clone, Copy)]
enum Step {
    Publish(usize),
    Begins(Trouble),
    Ends(Trouble),
}
