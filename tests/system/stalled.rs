//! A source or a store that goes silent without closing its connections, and a SIGTERM: the program nevertheless ends in
//! time, whether a handler is running or not, and what it could not settle is handled by the next run.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::kafka::{Kafka, Listener, Security};
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::proxy::{Direction, Flow, Proxy};
use onceward_test_servers::pubsub::Pubsub;
use onceward_test_servers::rabbitmq::{self, RabbitMq};
use onceward_test_servers::redis::Redis;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::order;
use onceward_test_support::process::{Ended, until};
use onceward_test_support::setup::Setup;
use serde_json::json;

use crate::kafka::topic::Topic;
use crate::pair::{Waiting, scene, with_redis, without_source};
use crate::postgres::table::Table;
use crate::pubsub::subscription::Subscription;
use crate::rabbitmq::on;
use crate::rabbitmq::queue::Queue;
use crate::stage::PATIENCE;

const DRAIN: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(1);
/// What `docs/operations.md` promises beyond these two, and what a busy machine adds.
const ENDING: Duration = Duration::from_secs(3);
const SLACK: Duration = Duration::from_millis(1_500);

/// Messages one by one, so that the store and the source have something to say at the end.
const ORDER: &str = "held";

fn limits(setup: Setup, name: &str) -> Setup {
    setup
        .set("scope", format!("stalled-{name}"))
        .set("pipeline.drain_timeout", format!("{}s", DRAIN.as_secs()))
        .set("pipeline.cancel_grace", format!("{}s", GRACE.as_secs()))
}

fn proxy(address: SocketAddr) -> Proxy {
    Proxy::start(address).expect("a proxy")
}

/// Figures for runs with --nocapture.
#[allow(clippy::print_stdout)]
fn in_time(case: &str, took: Duration, ended: &Ended) {
    println!("{case}: {took:?}, exit code {:?}", ended.code());
    assert!(took <= DRAIN + GRACE + ENDING + SLACK, "{case}: it took {took:?}: {ended:#?}");
    assert!(matches!(ended.code(), Some(0 | 124)), "{case}: {ended:#?}");
}

/// Ends a program whose `proxy` passes nothing any more, and reports how long that took.
fn end(name: &str, waiting: &impl Waiting, proxy: &Proxy, setup: &Setup, is_busy: bool) {
    let scene = scene(setup);
    let running = scene.run();
    until("it runs", PATIENCE, || running.stderr().contains("pipeline started"));
    if is_busy {
        waiting.publish(&[order(ORDER, &json!({"ms": 500}))]);
        until("its run", PATIENCE, || scene.count(Kind::Start).len() == 1);
    }
    for direction in [Direction::ToServer, Direction::ToClient] {
        proxy.set(direction, Flow::Stall);
    }
    running.terminate();
    let asked = Instant::now();
    let ended = running.wait_within(PATIENCE);
    let took = asked.elapsed();
    proxy.heal();
    in_time(&format!("{name}, busy: {is_busy}"), took, &ended);
    if is_busy {
        let next = scene.run();
        // What the proxy had held back has arrived with its healing: the source may be empty already.
        until("it runs again", PATIENCE, || next.stderr().contains("pipeline started"));
        until("an empty source", PATIENCE, || waiting.is_empty());
        next.terminate();
        let next: Ended = next.wait_within(PATIENCE);
        assert_eq!(next.code(), Some(0), "{name}: {next:#?}");
        assert!(scene.count(Kind::Effect).contains_key(ORDER), "{name}: it was acked without its effect");
    }
}

/// While idle, and while a handler runs.
fn both(name: &str, waiting: &impl Waiting, proxy: &Proxy, setup: &Setup) {
    for is_busy in [false, true] {
        end(name, waiting, proxy, &limits(setup.clone(), name), is_busy);
    }
}

#[test]
fn a_program_whose_rabbitmq_is_silent_ends_in_time() {
    let queue = Queue::declare("stalled-rabbitmq", &[]);
    let proxy = proxy(queue.broker.address());
    let setup = on(&queue, without_source()).set("source.rabbitmq.url", rabbitmq::url(proxy.port()));
    both("rabbitmq", &queue, &proxy, &with_redis(setup, Redis::shared()));
}

#[test]
fn a_program_whose_rabbitmq_is_stopped_ends_in_time() {
    let broker = RabbitMq::start();
    let queue = Queue::declare_on(&broker, "stopped-rabbitmq", &[]);
    let setup = limits(with_redis(on(&queue, without_source()), Redis::shared()), "stopped");
    let scene = scene(&setup);
    let running = scene.run();
    queue.publish(&[order(ORDER, &json!({"ms": 500}))]);
    until("its run", PATIENCE, || scene.count(Kind::Start).len() == 1);
    broker.pause(true);
    running.terminate();
    let asked = Instant::now();
    let ended = running.wait_within(PATIENCE);
    let took = asked.elapsed();
    broker.pause(false);
    in_time("rabbitmq, stopped", took, &ended);
}

#[test]
fn a_program_whose_sqs_is_silent_ends_in_time() {
    let queue = crate::sqs::queue::Queue::create("stalled-sqs", &[]);
    let proxy = proxy(ElasticMq::shared().address());
    let endpoint = format!("http://127.0.0.1:{}", proxy.port());
    let setup = crate::sqs::setup(&queue).set("source.sqs.endpoint", endpoint);
    both("sqs", &queue, &proxy, &with_redis(setup, Redis::shared()));
}

#[test]
fn a_program_whose_pubsub_is_silent_ends_in_time() {
    let subscription = Subscription::create("stalled-pubsub", &json!({}));
    let proxy = proxy(Pubsub::shared().address());
    let endpoint = format!("http://{}", proxy.address());
    let setup = crate::pubsub::setup(&subscription).set("source.pubsub.endpoint", endpoint);
    both("pubsub", &subscription, &proxy, &with_redis(setup, Redis::shared()));
}

#[test]
fn a_program_whose_kafka_is_silent_ends_in_time() {
    let listener = Listener::new(Security::Plain);
    let proxy = proxy(listener.address());
    let listener = listener.advertised(proxy.port());
    let broker = Kafka::start_with_listeners(&[listener], None);
    let topic = Topic::create_on(&broker, "stalled-kafka", 2);
    let setup = crate::kafka::setup(&topic).set("source.kafka.brokers", vec![listener.bootstrap()]);
    both("kafka", &topic, &proxy, &setup);
}

#[test]
fn a_program_whose_redis_is_silent_ends_in_time() {
    let queue = Queue::declare("stalled-redis", &[]);
    let redis = Redis::shared();
    let proxy = proxy(redis.address());
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let setup = with_redis(on(&queue, without_source()), redis).set("store.redis.url", url);
    both("redis", &queue, &proxy, &setup);
}

#[test]
fn a_program_whose_postgres_is_silent_ends_in_time() {
    let queue = Queue::declare("stalled-postgres", &[]);
    let server = Postgres::shared();
    let proxy = proxy(server.address());
    let table = Table::create(server, "stalled_postgres");
    let setup = table.store(on(&queue, without_source()));
    let setup = setup.set("store.postgres.url", Postgres::url_at(proxy.address(), "postgres"));
    both("postgres", &queue, &proxy, &setup);
}
