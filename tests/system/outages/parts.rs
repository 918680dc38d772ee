//! Stores, handlers, the relay's broker, the collector and the dead-letter destination that cannot be reached or used.

use std::fs;

use onceward_test_servers::otlp::Collector;
use onceward_test_servers::ports::free_port;
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::proxy::Proxy;
use onceward_test_servers::rabbitmq::{RabbitMq, url};
use onceward_test_servers::redis::Redis;
use onceward_test_support::process::Running;
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::json;

use super::{Outage, loaded, loaded_with, refusing, started, started_with};
use crate::handler_outages::SERVER;
use crate::letters::letters_to;
use crate::office::{Books, Office};
use crate::pair::{Waiting, scene, with_redis, without_source};
use crate::postgres::table::Table;
use crate::rabbitmq;
use crate::rabbitmq::queue::Queue;

fn survive_store(name: &str, setup: Setup, queue: &Queue<'_>, proxy: &Proxy) {
    let (scene, running, port) = started(name, setup);
    let ((load, is_done), (begin, repair)) = (loaded(queue), refusing(proxy));
    let (alert, component, shows) = ("OncewardStoreDown", "store", "error: ");
    Outage { alert, component, shows, scene: &scene, running, port, load, is_done, begin, repair }.survive();
}

pub(super) fn redis() {
    let proxy = Proxy::start(Redis::shared().address()).expect("a proxy");
    let queue = Queue::declare("outage-redis", &[]);
    let setup = with_redis(rabbitmq::on(&queue, without_source()), Redis::shared());
    let url = format!("redis://{}", proxy.address());
    survive_store("redis", setup.set("store.redis.url", url), &queue, &proxy);
}

pub(super) fn postgres() {
    let proxy = Proxy::start(Postgres::shared().address()).expect("a proxy");
    let queue = Queue::declare("outage-postgres", &[]);
    let setup = Table::create(Postgres::shared(), "outage").store(rabbitmq::on(&queue, without_source()));
    let url = Postgres::url_at(proxy.address(), "postgres");
    let setup = setup.set("store.postgres.url", url);
    let migrated = scene(&setup).execute(&["migrate", "onceward.toml"]);
    assert_eq!(migrated.code(), Some(0), "{migrated:#?}");
    survive_store("postgres", setup, &queue, &proxy);
}

/// No process listens at its address; then it is started.
pub(super) fn http_handler() {
    let queue = Queue::declare("outage-http", &[]);
    let port_of_handler = free_port().expect("a port");
    let endpoint = format!("http://127.0.0.1:{port_of_handler}/orders");
    let setup = with_redis(rabbitmq::on(&queue, without_source()), Redis::shared())
        .without("handler")
        .set("handler.http.url", endpoint);
    let (scene, running, port) = started("http", setup);
    scene.write("server.py", SERVER.as_bytes());
    let start = |scene: &Scene| {
        let mut command = std::process::Command::new("python3");
        scene.start(command.args(["server.py", &port_of_handler.to_string()]))
    };
    let server = std::cell::RefCell::new(Some(start(&scene)));
    let (load, is_done) = loaded(&queue);
    let begin = |_: &Scene| drop(server.borrow_mut().take().map(Running::kill));
    let repair = |scene: &Scene| *server.borrow_mut() = Some(start(scene));
    let (alert, component, shows) = ("OncewardHandlerDown", "handler", "the handler is unavailable");
    let (begin, repair) = (Box::new(begin), Box::new(repair));
    Outage { alert, component, shows, scene: &scene, running, port, load, is_done, begin, repair }.survive();
}

/// It ends before it reads anything, as a program whose import fails; and those that run end at their next message.
const WORKER: &str = r#"
import json, os, sys
def check():
    if os.path.exists("down"):
        sys.exit("ImportError: no module named billing")
check()
for line in sys.stdin:
    check()
    print(json.dumps({"id": json.loads(line)["id"], "ok": True}), flush=True)
"#;

pub(super) fn worker() {
    let queue = Queue::declare("outage-worker", &[]);
    let setup = with_redis(rabbitmq::on(&queue, without_source()), Redis::shared());
    let setup = setup.set("handler.worker.command", vec!["python3", "w.py"]);
    let (scene, running, port) =
        started_with("worker", setup, |scene| scene.write("w.py", WORKER.as_bytes()));
    let (load, is_done) = loaded(&queue);
    let begin = |scene: &Scene| scene.write("down", b"");
    let repair = |scene: &Scene| fs::remove_file(scene.path("down")).expect("it was there");
    let (alert, component, shows) = ("OncewardHandlerDown", "handler", "the handler is unavailable");
    let (begin, repair) = (Box::new(begin), Box::new(repair));
    Outage { alert, component, shows, scene: &scene, running, port, load, is_done, begin, repair }.survive();
}

/// The relay's broker cannot be reached.
pub(super) fn relay() {
    let proxy = Proxy::start(RabbitMq::shared().address()).expect("a proxy");
    let (from, to) = (Queue::declare("outage-relay", &[]), Queue::declare("outage-relay.out", &[]));
    let port = free_port().expect("a port");
    let setup = rabbitmq::on(&from, without_source())
        .set("scope", "outage-relay")
        .set("telemetry.listen", format!("127.0.0.1:{port}"))
        .set("outbox.rabbitmq.url", url(proxy.port()));
    let office = Office::open(Books::Sqlite, setup, &to.name);
    let running = office.relay();
    let (begin, repair) = refusing(&proxy);
    let office = &office;
    Outage {
        alert: "OncewardOutboxBrokerDown",
        component: "broker of the outbox",
        shows: "attempts failed: ",
        scene: &office.scene,
        running,
        port,
        load: Box::new(|_| office.put(1)),
        is_done: Box::new(|_| office.waiting() == 0),
        begin,
        repair,
    }
    .survive();
}

pub(super) fn collector() {
    let collector = Collector::start();
    let address = collector.url().trim_start_matches("http://").parse().expect("an address");
    let proxy = Proxy::start(address).expect("a proxy");
    let queue = Queue::declare("outage-collector", &[]);
    let setup = with_redis(rabbitmq::on(&queue, without_source()), Redis::shared());
    let setup = setup.set("telemetry.otlp", format!("http://{}", proxy.address()));
    let (scene, running, port) = started("collector", setup);
    let ((load, is_done), (begin, repair)) = (loaded(&queue), refusing(&proxy));
    let (alert, component, shows) = ("OncewardCollectorDown", "collector", "[collector-unavailable]");
    Outage { alert, component, shows, scene: &scene, running, port, load, is_done, begin, repair }.survive();
}

/// Its queue is deleted; then it is declared again.
pub(super) fn dead_letters() {
    let (queue, dead) = (Queue::declare("outage-letters", &[]), Queue::declare("outage-letters.dead", &[]));
    let setup = letters_to(rabbitmq::on(&queue, without_source()), &dead.name);
    let (scene, running, port) = started("letters", with_redis(setup, Redis::shared()));
    let (load, _) = loaded_with(&queue, json!({"do": "permanent"}));
    let begin = |_: &Scene| dead.delete();
    let repair = |_: &Scene| drop(Queue::declare(&dead.name, &[]));
    let is_done = Box::new(|_: &Scene| queue.is_empty());
    let (alert, component, shows) = ("OncewardDeadLettersRefused", "dead-letter destination", "error: ");
    let (begin, repair) = (Box::new(begin), Box::new(repair));
    Outage { alert, component, shows, scene: &scene, running, port, load, is_done, begin, repair }.survive();
}
