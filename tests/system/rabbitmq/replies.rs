//! `on_completed = "replay-result"`: a requester that sends twice gets the same reply twice, and there is one effect, whatever
//! handles the requests and whatever dies between.

use std::collections::BTreeMap;
use std::process::Command;

use lapin::message::Delivery;
use lapin::options::BasicGetOptions;
use lapin::{Connection, ConnectionProperties};
use onceward::Outgoing;
use onceward::failpoints::Step;
use onceward_test_servers::ports::free_port;
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::redis::Redis;
use onceward_test_support::orders::order;
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::json;

use super::queue::{Queue, runtime};
use super::setup;
use crate::pair::{Waiting, scene, stop, with_redis};
use crate::postgres::table::Table;
use crate::stage::{PATIENCE, worker};

/// Each run has another result, a JSON text: `"run 1 of ID"`. With `size` in the order it has so many bytes.
const RUN: &str = r#"
import http.server, json, os, sys
def run(order):
    with open("runs", "a") as runs:
        runs.write("x")
    return "run %d of %s" % (os.path.getsize("runs"), order["id"]) + "." * order.get("size", 0)
"#;
const COMMAND: &str = r#"
print(json.dumps(run(json.load(sys.stdin))), end="")
"#;
const WORKER: &str = r#"
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps({"id": request["id"], "ok": True, "result": run(json.loads(request["payload"]))}), flush=True)
"#;
const SERVER: &str = r#"
def answer(body):
    if not isinstance(body, list):
        return run(body)
    with open("batches", "a") as batches:
        batches.write("%d\n" % len(body))
    results = [{"id": each["id"], "ok": True, "result": run(json.loads(each["payload"]))} for each in body]
    # In any order.
    return results[::-1]
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = json.dumps(answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

/// The result of the first run, of two requests' order.
const RUN_1: &str = r#""run 1 of only""#;

fn replaying(queue: &Queue<'_>) -> Setup {
    let setup = with_redis(setup(queue), Redis::shared()).set("scope", queue.name.as_str());
    setup
        .set("policy.on_completed", "replay-result")
        .set("handler.worker.command", vec!["python3", "worker.py"])
        .set("handler.worker.processes", 1)
}

fn with_scripts(setup: &Setup) -> Scene {
    let scene = scene(setup);
    scene.write("worker.py", [RUN, WORKER].concat().as_bytes());
    scene.write("server.py", [RUN, SERVER].concat().as_bytes());
    scene.write("command.py", [RUN, COMMAND].concat().as_bytes());
    scene
}

fn request(queue: &Queue<'_>, line: &str, correlation: &str, reply_to: &str) {
    queue.publish_all(&[asking(queue, line, correlation, reply_to)]);
}

fn asking(queue: &Queue<'_>, line: &str, correlation: &str, reply_to: &str) -> Outgoing {
    let headers = [("amqp-reply-to", reply_to), ("amqp-correlation-id", correlation)];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned().into()));
    Outgoing { headers: headers.into(), ..queue.message(line) }
}

/// Takes the next reply: its correlation id, its payload, and whether it says that there is no result.
fn reply(replies: &Queue<'_>) -> (String, String, bool) {
    next_replies(replies, 1).remove(0)
}

/// As [`reply`], for as many.
fn next_replies(replies: &Queue<'_>, count: usize) -> Vec<(String, String, bool)> {
    let runtime = runtime();
    let channel = runtime.block_on(async {
        let connected = Connection::connect(&replies.broker.url(), ConnectionProperties::default()).await;
        connected.expect("a connection").create_channel().await.expect("a channel")
    });
    let mut found = Vec::new();
    until("replies", PATIENCE, || {
        let got = channel.basic_get(replies.name.as_str().into(), BasicGetOptions { no_ack: true });
        found.extend(runtime.block_on(got).expect("an answer").map(|message| read(message.delivery)));
        found.len() == count
    });
    found
}

fn read(message: Delivery) -> (String, String, bool) {
    let properties = &message.properties;
    let correlation = properties.correlation_id().as_ref().map(ToString::to_string).unwrap_or_default();
    let headers = properties.headers().clone().unwrap_or_default();
    let is_absent = headers.inner().contains_key("onceward-result");
    (correlation, String::from_utf8(message.data).expect("text"), is_absent)
}

/// One letter for each run.
fn runs(scene: &Scene) -> String {
    std::fs::read_to_string(scene.path("runs")).expect("there were runs")
}

fn is(correlation: &str, payload: &str) -> (String, String, bool) {
    (correlation.to_owned(), payload.to_owned(), false)
}

/// Two requests with one key, and a restart between them.
fn two_requests(queue: &Queue<'_>, scene: &Scene) {
    let replies = Queue::declare(&format!("{}.replies", queue.name), &[]);
    let line = order("only", &json!({}));
    for correlation in ["one", "two"] {
        let running = scene.run();
        request(queue, &line, correlation, &replies.name);
        assert_eq!(reply(&replies), is(correlation, RUN_1));
        until("an empty queue", PATIENCE, || queue.is_empty());
        stop(vec![running]);
    }
    assert_eq!(runs(scene), "x");
}

#[test]
fn a_worker_has_one_effect_and_each_requester_its_result() {
    let queue = Queue::declare("replies-worker", &[]);
    two_requests(&queue, &with_scripts(&replaying(&queue)));
}

#[test]
fn a_command_with_its_keys_in_postgres_has_one_effect_and_each_requester_its_output() {
    let queue = Queue::declare("replies-exec", &[]);
    let table = Table::create(Postgres::shared(), "replies_exec");
    let setup = table.store(replaying(&queue).without("store.redis").without("handler"));
    two_requests(&queue, &with_scripts(&setup.set("handler.exec.command", vec!["python3", "command.py"])));
}

/// The effect is committed with its completion, whose record has no room for a result: each reply is without one.
#[test]
fn a_statement_has_one_row_and_each_requester_learns_that_it_is_committed() {
    for (name, batch) in [("replies_sql", 1), ("replies_sql_batch", 16)] {
        let queue = Queue::declare(name, &[]);
        let replies = Queue::declare(&format!("{name}.to"), &[]);
        let table = Table::create(Postgres::shared(), name);
        let setup = table.handler(replaying(&queue).without("store.redis"));
        let scene = scene(&setup.set("handler.sql.batch", batch).set("pipeline.concurrency", 32));
        let ids: Vec<_> = (0..20).map(|number| format!("order-{number:02}")).collect();
        for round in ["first", "again"] {
            let ask = |id: &String| {
                let line = order(id, &json!({"steps": 1}));
                asking(&queue, &line, &format!("{round} {id}"), &replies.name)
            };
            queue.publish_all(&ids.iter().map(ask).collect::<Vec<_>>());
            let running = scene.run();
            let mut found = next_replies(&replies, ids.len());
            found.sort();
            let expected = ids.iter().map(|id| (format!("{round} {id}"), String::new(), true));
            assert_eq!(found, expected.collect::<Vec<_>>());
            until("an empty queue", PATIENCE, || queue.is_empty());
            stop(vec![running]);
            table.assert_exact(&ids, round);
        }
    }
}

/// A server that ends with its test.
struct Server(Option<Running>);

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(server) = self.0.take() {
            server.kill();
        }
    }
}

#[test]
fn an_http_server_has_one_effect_and_each_requester_its_body() {
    let queue = Queue::declare("replies-http", &[]);
    let (scene, _server) = with_server(replaying(&queue));
    two_requests(&queue, &scene);
}

#[test]
fn each_requester_gets_its_own_result_out_of_a_batch() {
    let queue = Queue::declare("replies-batch", &[]);
    let replies = Queue::declare("replies-batch.to", &[]);
    let (scene, _server) = with_server(replaying(&queue).set("handler.http.batch", 16));
    let ids: Vec<_> = (0..40).map(|number| format!("order-{number:02}")).collect();
    let mut results = BTreeMap::new();
    for round in ["first", "again"] {
        let ask =
            |id: &String| asking(&queue, &order(id, &json!({})), &format!("{round} {id}"), &replies.name);
        queue.publish_all(&ids.iter().map(ask).collect::<Vec<_>>());
        let running = scene.run();
        for (correlation, payload, is_absent) in next_replies(&replies, ids.len()) {
            let id = correlation.strip_prefix(round).expect("a reply of this round").trim().to_owned();
            assert!(!is_absent && payload.ends_with(&format!(" of {id}\"")), "{correlation}: {payload}");
            // The same the second time.
            assert_eq!(*results.entry(id).or_insert_with(|| payload.clone()), payload);
        }
        until("an empty queue", PATIENCE, || queue.is_empty());
        stop(vec![running]);
    }
    assert_eq!((results.len(), runs(&scene).len()), (ids.len(), ids.len()));
    let batches = std::fs::read_to_string(scene.path("batches")).expect("there were requests");
    assert!(batches.lines().any(|size| size != "1"), "each message had a request of its own");
}

/// A scene with an HTTP server as the handler.
fn with_server(setup: Setup) -> (Scene, Server) {
    let port = free_port().expect("a port");
    let url = format!("http://127.0.0.1:{port}/");
    let scene = with_scripts(&setup.without("handler.worker").set("handler.http.url", url));
    let server = scene.start(Command::new("python3").args(["server.py", &port.to_string()]));
    (scene, Server(Some(server)))
}

#[test]
fn a_process_that_dies_between_completion_and_ack_leaves_the_reply_to_the_next() {
    for (step, expected) in [(Step::CompleteApplied, 1), (Step::ReplyApplied, 2)] {
        let queue = Queue::declare(&format!("replies-{}", step.name()), &[]);
        let replies = Queue::declare(&format!("{}.to", queue.name), &[]);
        let scene = with_scripts(&replaying(&queue));
        request(&queue, &order("only", &json!({})), "one", &replies.name);
        let died = scene.run_with_crash_point(&format!("{}:1:abort", step.name())).wait_within(PATIENCE);
        assert_eq!(died.signal(), Some(6), "{died:#?}");
        let running = scene.run();
        // At least once: the second is a copy, which the same `onceward-id` shows.
        for _ in 0..expected {
            assert_eq!(reply(&replies), is("one", RUN_1));
        }
        until("an empty queue", PATIENCE, || queue.is_empty());
        stop(vec![running]);
        assert_eq!(replies.depth(), (0, 0));
        assert_eq!(runs(&scene), "x");
    }
}

#[test]
fn a_result_that_is_too_large_is_absent_and_a_queue_that_is_gone_holds_nothing_up() {
    let queue = Queue::declare("replies-edges", &[]);
    let (replies, gone) =
        (Queue::declare("replies-edges.to", &[]), Queue::declare("replies-edges.gone", &[]));
    let scene = with_scripts(&replaying(&queue));
    gone.delete();
    request(&queue, &order("lost", &json!({})), "zero", &gone.name);
    let running = scene.run();
    for correlation in ["one", "two"] {
        request(&queue, &order("large", &json!({"size": 70_000})), correlation, &replies.name);
        assert_eq!(reply(&replies), (correlation.to_owned(), String::new(), true));
    }
    until("an empty queue", PATIENCE, || queue.is_empty());
    running.terminate();
    let ended = running.wait_within(PATIENCE);
    assert!(ended.stderr.contains("reply undeliverable"), "{ended:#?}");
    assert_eq!(runs(&scene), "xx");
}

#[test]
fn a_source_without_addresses_is_refused_by_check() {
    let scene = scene(&worker().set("policy.on_completed", "replay-result"));
    scene.write("orders.ndjson", b"");
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_ne!(checked.code(), Some(0), "{checked:#?}");
    let printed = [checked.stdout, checked.stderr].concat();
    assert!(printed.contains("policy.on_completed"), "{printed}");
    assert!(printed.contains("[source.file] have no address"), "{printed}");
}
