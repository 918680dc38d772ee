//! A handler that is not available for a while, behind each broker: no attempt is used, nothing is lost, and the backlog is
//! handled once it is back; a message that is refused meanwhile changes nothing of that.
//!
//! With `SLOW=1` the outage lasts two minutes, and `[handler.publish]` meets a stopped broker as well as a missing topic.

mod publish;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::redis::Redis;
use onceward_test_support::orders;
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use crate::pair::{LONG, Waiting, scene, stop, with_redis};
use crate::postgres::table::Table;
use publish::Publish;

const ORDERS: usize = 60;
/// The message that each handler refuses for good.
const POISON: &str = "poison";
/// Bytes that the topic of `[handler.publish]` takes in one record.
const RECORD_LIMIT: u32 = 16 * 1024;

/// Two attempts, soon one after the other, would be used up within a second. The poison stays in its source.
fn impatient(setup: Setup) -> Setup {
    setup.set("retry.max_attempts", 2).set("retry.initial", "10ms").set("retry.max", "500ms")
}

fn is_slow() -> bool {
    std::env::var_os("SLOW").is_some()
}

fn outage() -> Duration {
    Duration::from_secs(if is_slow() { 120 } else { 6 })
}

fn ids() -> Vec<String> {
    (0..ORDERS).map(|number| format!("order-{number:03}")).collect()
}

/// The poison is not the last one: others come after it. It is larger than [`RECORD_LIMIT`].
fn lines() -> Vec<String> {
    let line = |id: &String| orders::order(id, &json!({"lane": id, "steps": 1}));
    let mut lines: Vec<_> = ids().iter().map(line).collect();
    let padding = "x".repeat(4 * RECORD_LIMIT as usize);
    lines.insert(ORDERS / 2, orders::order(POISON, &json!({"lane": POISON, "steps": 1, "padding": padding})));
    lines
}

/// The attempt and the message of each effect.
fn effects(scene: &Scene) -> Vec<String> {
    let text = fs::read_to_string(scene.path("effects.log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// True once each order has its effect; all of them are of a first attempt.
fn all_at_once(scene: &Scene) -> bool {
    let effects = effects(scene);
    if effects.len() < ORDERS {
        return false;
    }
    let done: BTreeSet<_> = effects.iter().filter_map(|effect| effect.strip_prefix("1 ")).collect();
    let wanted = ids();
    assert_eq!(done, wanted.iter().map(String::as_str).collect(), "{effects:?}");
    assert_eq!(effects.len(), ORDERS, "{effects:?}");
    true
}

/// One kind of handler, while it is unavailable.
trait Away {
    /// Puts the handler into the setup, and what it needs into the scene.
    fn prepare(&mut self, setup: Setup) -> (Scene, Running);

    /// Takes away what the handler needs.
    fn leave(&mut self, scene: &Scene);

    /// Brings it back.
    fn come_back(&mut self, scene: &Scene);

    fn nothing_happened(&self, scene: &Scene) -> bool {
        effects(scene).is_empty()
    }

    fn is_done(&self, scene: &Scene) -> bool {
        all_at_once(scene)
    }
}

struct Exec;

impl Exec {
    fn install(scene: &Scene) {
        let id = "id=$(printf %s \"$order\" | sed 's/.*\"id\":\"\\([^\"]*\\)\".*/\\1/')";
        let script = format!(
            "#!/bin/sh\norder=$(cat)\n{id}\n[ \"$id\" = {POISON} ] && exit 65\necho \"$ONCEWARD_ATTEMPT $id\" >> effects.log\n"
        );
        scene.write("new.sh", script.as_bytes());
        fs::set_permissions(scene.path("new.sh"), fs::Permissions::from_mode(0o755)).expect("rights");
        fs::rename(scene.path("new.sh"), scene.path("charge.sh")).expect("the script");
    }
}

impl Away for Exec {
    fn prepare(&mut self, setup: Setup) -> (Scene, Running) {
        let command = vec!["./charge.sh".to_owned()];
        let scene = scene(&setup.without("handler").set("handler.exec.command", command));
        Self::install(&scene);
        let running = scene.run();
        (scene, running)
    }

    fn leave(&mut self, scene: &Scene) {
        fs::remove_file(scene.path("charge.sh")).expect("it was there");
    }

    fn come_back(&mut self, scene: &Scene) {
        Self::install(scene);
    }
}

/// It ends before it reads anything, as a program whose import fails.
struct Worker;

const WORKER: &str = r#"
import json, os, sys
if os.path.exists("down"):
    sys.exit("ImportError: no module named billing")
for line in sys.stdin:
    request = json.loads(line)
    order = json.loads(request["payload"])
    if order["id"] == "poison":
        answer = {"id": request["id"], "ok": False, "retry": False}
    else:
        with open("effects.log", "a") as effects:
            effects.write(f"{request['attempt']} {order['id']}\n")
        answer = {"id": request["id"], "ok": True}
    print(json.dumps(answer), flush=True)
"#;

impl Away for Worker {
    fn prepare(&mut self, setup: Setup) -> (Scene, Running) {
        let command = vec!["python3".to_owned(), "w.py".to_owned()];
        let scene = scene(&setup.without("handler").set("handler.worker.command", command));
        scene.write("w.py", WORKER.as_bytes());
        scene.write("down", b"");
        let running = scene.run();
        (scene, running)
    }

    fn leave(&mut self, _scene: &Scene) {}

    fn come_back(&mut self, scene: &Scene) {
        fs::remove_file(scene.path("down")).expect("it was there");
    }
}

/// No process listens at its address.
#[derive(Default)]
struct Http {
    port: u16,
    server: Option<Running>,
}

pub(crate) const SERVER: &str = r#"
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        poison = order["id"] == "poison"
        if not poison:
            with open("effects.log", "a") as effects:
                effects.write(f"{self.headers['Onceward-Attempt']} {order['id']}\n")
        self.send_response(422 if poison else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

impl Away for Http {
    fn prepare(&mut self, setup: Setup) -> (Scene, Running) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        self.port = listener.local_addr().expect("its address").port();
        let url = format!("http://127.0.0.1:{}/orders", self.port);
        let scene = scene(&setup.without("handler").set("handler.http.url", url));
        scene.write("server.py", SERVER.as_bytes());
        let running = scene.run();
        (scene, running)
    }

    fn leave(&mut self, _scene: &Scene) {}

    fn come_back(&mut self, scene: &Scene) {
        let mut command = std::process::Command::new("python3");
        command.args(["server.py", &self.port.to_string()]);
        self.server = Some(scene.start(&mut command));
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }
}

/// The table of its statement does not exist.
struct Sql(Table<'static>);

impl Away for Sql {
    fn prepare(&mut self, setup: Setup) -> (Scene, Running) {
        let setup = self.0.handler(setup.without("store.redis"));
        let scene = scene(&setup);
        self.0.sql("ALTER TABLE @.effects ADD CONSTRAINT good CHECK (id <> 'poison')");
        let running = scene.run();
        (scene, running)
    }

    fn leave(&mut self, _scene: &Scene) {
        self.0.sql("ALTER TABLE @.effects RENAME TO away");
    }

    fn come_back(&mut self, _scene: &Scene) {
        self.0.sql("ALTER TABLE @.away RENAME TO effects");
    }

    fn nothing_happened(&self, _scene: &Scene) -> bool {
        self.0.sql("SELECT count(*) FROM @.away") == "0"
    }

    fn is_done(&self, scene: &Scene) -> bool {
        if self.0.count() < ORDERS {
            return false;
        }
        self.0.assert_exact(&ids(), "after the outage");
        assert_eq!(completed(scene).len(), ORDERS);
        true
    }
}

/// The records of the keys that are completed; none has a failed run.
fn completed(scene: &Scene) -> Vec<Value> {
    let listed = scene.execute(&["keys", "list", "onceward.toml", "--limit", "1000", "--json"]);
    assert_eq!(listed.code(), Some(0), "{listed:#?}");
    let records = listed.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON lines"));
    let completed: Vec<Value> = records.filter(|record: &Value| record["state"] == "completed").collect();
    assert!(completed.iter().all(|record| record["attempts"] == 0), "{completed:#?}");
    completed
}

/// All kinds of handlers at the same time, each behind a source of its own.
#[allow(clippy::print_stdout)]
fn survive<W: Waiting>(broker: &str, mut source: impl FnMut(&str) -> (W, Setup)) {
    let table = Table::create(Postgres::shared(), &format!("away_{broker}"));
    let mut kinds: Vec<(&str, Box<dyn Away>)> = vec![
        ("exec", Box::new(Exec)),
        ("worker", Box::new(Worker)),
        ("http", Box::<Http>::default()),
        ("sql", Box::new(Sql(table))),
        ("publish", Box::new(Publish::to_a_missing_topic(broker))),
    ];
    if is_slow() {
        kinds.push(("publish-stopped", Box::new(Publish::to_a_stopped_broker())));
    }
    let mut cases = Vec::new();
    for (kind, mut away) in kinds {
        let (waiting, setup) = source(&format!("away-{kind}"));
        let setup =
            impatient(with_redis(setup, Redis::shared())).set("scope", format!("away-{broker}-{kind}"));
        let (scene, running) = away.prepare(setup);
        until("it runs", LONG, || running.stderr().contains("pipeline started"));
        away.leave(&scene);
        waiting.publish(&lines());
        cases.push((kind, away, scene, running));
    }
    std::thread::sleep(outage());
    for (kind, away, scene, running) in &mut cases {
        assert!(away.nothing_happened(scene), "{kind}: {}", running.stderr());
        away.come_back(scene);
    }
    let began = Instant::now();
    for (kind, away, scene, running) in &cases {
        until(&format!("the backlog of {kind}"), LONG, || away.is_done(scene));
        // A figure for runs with --nocapture; nothing is asserted on a machine with other work.
        println!("{broker}, {kind}: the backlog is handled at most {:?} after the outage", began.elapsed());
        let log = running.stderr();
        assert!(!log.contains("dead-lettered"), "{kind}: {log}");
    }
    // What the handlers need outlives the programs: a drain waits for the poison.
    let split = cases.into_iter().map(|(_, away, scene, running)| ((away, scene), running));
    let (needed, running): (Vec<_>, Vec<_>) = split.unzip();
    stop(running);
    drop(needed);
}

#[test]
fn behind_rabbitmq_an_outage_of_the_handler_uses_no_attempt() {
    survive("rabbitmq", |name| {
        let queue = crate::rabbitmq::queue::Queue::declare(name, &[]);
        let setup = crate::rabbitmq::on(&queue, crate::pair::without_source());
        (queue, setup)
    });
}

#[test]
fn behind_kafka_an_outage_of_the_handler_uses_no_attempt() {
    survive("kafka", |name| {
        let topic = crate::kafka::topic::Topic::create(name, 2);
        let setup = crate::kafka::setup(&topic);
        (topic, setup)
    });
}

#[test]
fn behind_sqs_an_outage_of_the_handler_uses_no_attempt() {
    survive("sqs", |name| {
        let queue = crate::sqs::queue::Queue::create(name, &[]);
        let setup = crate::sqs::setup(&queue);
        (queue, setup)
    });
}

#[test]
fn behind_pubsub_an_outage_of_the_handler_uses_no_attempt() {
    survive("pubsub", |name| {
        let subscription = crate::pubsub::subscription::Subscription::create(name, &json!({}));
        let setup = crate::pubsub::setup(&subscription);
        (subscription, setup)
    });
}
