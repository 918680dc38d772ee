//! Checks that results are sent to where messages ask for them: after the completion, before the ack, and again to duplicates.

mod copies;
mod failing;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex as Lock;

use super::sequences::{in_lane, in_order};
use super::*;
use crate::error::ErrorKind;
use crate::handler::handler;
use crate::pipeline::config::{Mode, OnCompleted, OnExhausted, OnStoreDown, Policies};
use crate::replies::{Replied, Replies, Reply};

/// The recipient, the key and the result of a reply.
type Sent = (String, Option<Key>, Option<Bytes>);

/// How a publish fails.
#[derive(Clone, Copy, PartialEq)]
enum Failing {
    /// None does but to the address `gone`.
    Not,
    /// The reply does not arrive, and that is not known.
    Unknown,
    /// The broker takes none now.
    Refused,
    /// There is no such address.
    Undeliverable,
    /// It takes 100 ms to send a batch.
    Slow,
    /// It never answers.
    Silent,
}

/// Keeps what it is to send, and the state of its key at that moment.
struct Mailbox {
    store: MemoryStore,
    scope: Scope,
    broker: MemoryBroker,
    failing: Lock<Failing>,
    tries: Lock<usize>,
    sent: Lock<Vec<Sent>>,
}

#[async_trait]
impl Replies for Mailbox {
    fn wanted_by(&self, message: &Message) -> bool {
        message.header("reply-to").is_some()
    }

    async fn reply(&self, replies: &[Reply<'_>]) -> Vec<Result<Replied, Error>> {
        if *self.failing.lock() == Failing::Slow {
            tokio::time::sleep(100 * MS).await;
        }
        let mut answers = Vec::new();
        for Reply { message, key, result } in replies {
            if let Some(key) = key {
                let record = self.store.inspect(&self.scope, key).await.unwrap();
                let is_forgotten = record.is_none() && self.tries() > 0;
                let state = record.map(|record| record.state);
                assert!(is_forgotten || state == Some(KeyState::Completed), "not durable: {state:?}");
            }
            *self.tries.lock() += 1;
            let error = |kind| Error::new(kind, "reply", "as the test asks");
            let failing = *self.failing.lock();
            let to = String::from_utf8_lossy(message.header("reply-to").unwrap()).into_owned();
            answers.push(match failing {
                Failing::Not | Failing::Slow if to == "gone" => {
                    Ok(Replied::Undeliverable(error(ErrorKind::Config)))
                }
                Failing::Not | Failing::Slow => {
                    self.sent.lock().push((to, *key, result.cloned()));
                    Ok(Replied::Sent)
                }
                Failing::Unknown => Err(error(ErrorKind::Unavailable)),
                Failing::Refused => Ok(Replied::Refused(error(ErrorKind::Unavailable))),
                Failing::Undeliverable => Ok(Replied::Undeliverable(error(ErrorKind::Config))),
                Failing::Silent => std::future::pending().await,
            });
        }
        assert!(self.broker.depth() > 0, "acked before its reply");
        answers
    }
}

impl Mailbox {
    fn of(world: &World) -> Arc<Self> {
        Arc::new(Self {
            store: world.store.clone(),
            scope: world.scope.clone(),
            broker: world.broker.clone(),
            failing: Lock::new(Failing::Not),
            tries: Lock::default(),
            sent: Lock::default(),
        })
    }

    fn is(&self, failing: Failing) {
        *self.failing.lock() = failing;
    }

    fn sent(&self) -> Vec<(String, Option<Bytes>)> {
        self.sent.lock().iter().map(|(to, _, result)| (to.clone(), result.clone())).collect()
    }

    fn tries(&self) -> usize {
        *self.tries.lock()
    }
}

fn asking(id: &str, reply_to: &str) -> MessageBuilder {
    message(id).header("reply-to", reply_to.to_owned())
}

/// Starts a worker whose runs have different results: how many runs there were.
fn start(worker: WorkerBuilder<'_>, mailbox: &Arc<Mailbox>) -> Worker {
    let runs = Arc::clone(&worker.world.runs);
    let (builder, unstarted) = worker.pipeline();
    let pipeline = builder.replies(Arc::clone(mailbox) as _).handler(handler(move |message: Message| {
        let runs = Arc::clone(&runs);
        async move {
            let mut runs = runs.lock().unwrap();
            let now = Instant::now();
            runs.push(Run {
                id: id_of(&message),
                worker: 0,
                attempt: message.attempt(),
                fence: message.fence(),
                generation: message.generation(),
                started: now,
                ended: Some((now, Ok(()))),
            });
            if message.header("fails").is_some() && message.attempt() == 1 {
                return Err(HandlerError::retry("not yet"));
            }
            Ok(format!("run {}", runs.len()))
        }
    }));
    unstarted.run(pipeline.unwrap())
}

fn to(name: &str, result: &'static str) -> (String, Option<Bytes>) {
    (name.to_owned(), Some(Bytes::from_static(result.as_bytes())))
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_gets_the_reply_of_the_run_at_its_own_address() {
    let world = World::new();
    let mailbox = Mailbox::of(&world);
    let worker = start(world.worker(), &mailbox);
    world.broker.publish(asking("a", "one"));
    world.empty().await;
    world.broker.publish(asking("a", "two"));
    // It asks for none.
    world.publish("a");
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!(mailbox.sent(), [to("one", "run 1"), to("two", "run 1")]);
    assert!(mailbox.sent.lock().iter().all(|(_, key, _)| *key == Some(world.key("a"))));
    assert_eq!((summary.handled(), summary.duplicates(), world.runs().len()), (1, 2, 1));
    assert_eq!(summary.counters().get(Counter::Replies), 2);
}

#[tokio::test(start_paused = true)]
async fn copies_that_wait_for_the_run_get_their_replies() {
    let world = World::new();
    let mailbox = Mailbox::of(&world);
    ["one", "two", "three"].into_iter().for_each(|name| world.broker.publish(asking("a", name)));
    let worker = start(world.worker(), &mailbox);
    world.empty().await;
    let summary = worker.end().await;
    let mut sent = mailbox.sent();
    sent.sort();
    assert_eq!(sent, [to("one", "run 1"), to("three", "run 1"), to("two", "run 1")]);
    assert_eq!((summary.handled(), summary.duplicates()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_may_not_have_arrived_is_sent_again_without_another_run() {
    for failing in [Failing::Unknown, Failing::Silent] {
        let world = World::new();
        let mailbox = Mailbox::of(&world);
        mailbox.is(failing);
        let worker = start(world.worker(), &mailbox);
        world.broker.publish(asking("a", "one"));
        eventually("three tries", || mailbox.tries() >= 3).await;
        // Others go on meanwhile.
        world.publish("b");
        eventually("b is acked", || world.broker.acked() == 1).await;
        mailbox.is(Failing::Not);
        world.empty().await;
        let summary = worker.end().await;
        assert_eq!(mailbox.sent(), [to("one", "run 1")]);
        assert_eq!((summary.handled(), summary.duplicates(), world.runs_of("a").len()), (2, 0, 1));
        assert!(summary.counters().get(Counter::ReplyErrors) >= 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_undeliverable_reply_is_counted_and_its_message_acked() {
    let world = World::new();
    let mailbox = Mailbox::of(&world);
    mailbox.is(Failing::Undeliverable);
    let worker = start(world.worker(), &mailbox);
    world.broker.publish(asking("a", "gone"));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), mailbox.tries()), (1, 1));
    assert_eq!(summary.counters().get(Counter::RepliesUndeliverable), 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_before_its_reply_leaves_it_to_the_next() {
    let world = World::new();
    let mailbox = Mailbox::of(&world);
    mailbox.is(Failing::Silent);
    let first = start(world.worker(), &mailbox);
    world.broker.publish(asking("a", "one"));
    eventually("a try", || mailbox.tries() == 1).await;
    first.die();
    mailbox.is(Failing::Not);
    let second = start(world.worker(), &mailbox);
    world.empty().await;
    let summary = second.end().await;
    assert_eq!(mailbox.sent(), [to("one", "run 1")]);
    assert_eq!((summary.handled(), summary.duplicates(), world.runs().len()), (0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn x14_a_result_stays_in_its_scope_and_within_its_limit() {
    let world = World::new();
    let mailbox = Mailbox::of(&world);
    let worker = start(world.worker(), &mailbox);
    world.broker.publish(asking("a", "billing"));
    world.empty().await;
    worker.end().await;
    let other = Scope::parse("shipping").unwrap();
    let elsewhere =
        Arc::new(Mailbox { scope: other.clone(), ..Arc::into_inner(Mailbox::of(&world)).unwrap() });
    let worker = start(world.worker().with(|worker| worker.scope = other), &elsewhere);
    world.broker.publish(asking("a", "shipping"));
    world.empty().await;
    worker.end().await;
    assert_eq!(
        (mailbox.sent(), elsewhere.sent()),
        (vec![to("billing", "run 1")], vec![to("shipping", "run 2")])
    );

    // The first reply is what the duplicates get: a result that is too large to be kept is in none.
    let worker = start(world.worker().config(|config| config.max_result_bytes = 4), &mailbox);
    for _ in 0..2 {
        world.broker.publish(asking("b", "billing"));
        world.empty().await;
    }
    worker.end().await;
    let absent = ("billing".to_owned(), None);
    assert_eq!(mailbox.sent()[1..], [absent.clone(), absent]);
    assert_eq!(world.runs_of("b").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lane_goes_on_in_order_while_replies_fail() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    let mailbox = Mailbox::of(&world);
    mailbox.is(Failing::Unknown);
    (1..=20).for_each(|number| {
        let address = number.to_string();
        world.broker.publish(in_lane("A", number).header("reply-to", address));
    });
    let worker = start(world.worker().config(in_order), &mailbox);
    eventually("all have run", || world.runs().len() == 20).await;
    mailbox.is(Failing::Not);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!(world.ids(), super::sequences::numbered("A", 1..=20));
    assert_eq!((summary.handled(), summary.duplicates()), (20, 0));
    let mut sent: Vec<_> = mailbox.sent();
    sent.sort();
    sent.dedup_by(|one, other| one.0 == other.0);
    assert_eq!(sent.len(), 20);
    for (address, result) in sent {
        assert_eq!(result, Some(Bytes::from(format!("run {address}"))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_that_waits_behind_a_failed_run_of_its_lane_keeps_its_reply() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    let mailbox = Mailbox::of(&world);
    let worker = start(world.worker().config(in_order), &mailbox);
    world.broker.publish(in_lane("A", 2));
    world.empty().await;
    mailbox.is(Failing::Unknown);
    // Both are in one claim, whose answer for the second is that it is completed.
    world.broker.publish(in_lane("A", 1).header("fails", "once"));
    world.broker.publish(in_lane("A", 2).header("reply-to", "two"));
    eventually("two tries", || mailbox.tries() == 2).await;
    mailbox.is(Failing::Not);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!(mailbox.sent(), [to("two", "run 1")]);
    assert_eq!((summary.handled(), summary.duplicates(), world.runs().len()), (2, 1, 3));
}

#[tokio::test(start_paused = true)]
async fn messages_of_the_same_round_do_not_wait_for_a_slow_reply() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    let mailbox = Mailbox::of(&world);
    mailbox.is(Failing::Silent);
    world.broker.publish(asking("a", "one"));
    world.publish_all(["b", "c", "d"]);
    let worker = start(world.worker(), &mailbox);
    eventually("the others are acked", || world.broker.acked() == 3).await;
    assert!(world.since_start(Instant::now()) < 100 * MS);
    mailbox.is(Failing::Not);
    world.empty().await;
    assert_eq!(worker.end().await.handled(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_policy_is_refused_without_replies_or_results() {
    let world = World::new();
    let replaying = |config: &mut PipelineConfig| {
        config.policies = Policies {
            on_completed: OnCompleted::ReplayResult,
            on_exhausted: OnExhausted::Park,
            ..Policies::default()
        };
    };
    let ok = || handler(|_: Message| async { Ok(()) });
    let refused = |built: Result<Pipeline<_>, Error>| built.unwrap_err().to_string();
    let (builder, _parts) = world.worker().config(replaying).pipeline();
    assert!(refused(builder.handler(ok())).contains("on_completed is replay-result, but there is nothing"));
    let (builder, _parts) = world.worker().config(|config| config.keep_results = false).pipeline();
    let builder = builder.replies(Mailbox::of(&world));
    assert!(refused(builder.handler(ok())).contains("keep_results is false"));
}
