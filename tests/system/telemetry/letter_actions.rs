//! Letters of brokers are redriven and purged through the listener of the run that sent them.

use std::io::{Read, Write};
use std::net::TcpStream;

use onceward_test_servers::ports::free_port;
use onceward_test_servers::redis::Redis;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::order;
use onceward_test_support::process::until;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use crate::kafka::topic::Topic;
use crate::letters::letters_to;
use crate::pair::{Waiting, scene, stop, with_redis, without_source};
use crate::rabbitmq::queue::Queue;
use crate::sqs::queue::Queue as SqsQueue;
use crate::stage::PATIENCE;
use crate::{kafka, rabbitmq, sqs};

const TOKEN: &str = "0123456789abcdef-a-token";

/// The answer to a request, as status and JSON; `None` while nothing listens there.
fn ask(port: u16, line: &str, body: &str) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let headers = format!(
        "Host: h\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {}",
        body.len()
    );
    write!(stream, "{line} HTTP/1.1\r\n{headers}\r\n\r\n{body}").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, serde_json::from_str(body).ok()?))
}

fn act(port: u16, action: &str, id: &str) -> (u16, String) {
    let body = json!({"id": id, "why": "on call", "by": "ann"}).to_string();
    let (status, answer) = ask(port, &format!("POST /letters/{action}"), &body).expect("an answer");
    (status, answer["result"].as_str().unwrap_or_default().to_owned())
}

/// The id of the letter with this reason, on the page.
fn letter(port: u16, reason: &str) -> Option<String> {
    let (_, figures) = ask(port, "GET /status.json", "")?;
    let found = figures["letters"].as_array()?.iter().find(|letter| letter["reason"] == reason)?.clone();
    Some(found["id"].as_str()?.to_owned())
}

/// Of two letters one is redriven, whose effect happens once, and one purged; neither is there afterwards.
fn one_is_redriven_and_one_purged(setup: &Setup, source: &impl Waiting) {
    let port = free_port().expect("a port");
    let setup = setup.clone().set("retry.max_attempts", 3).set("telemetry.token", TOKEN);
    let scene = scene(&setup.set("telemetry.listen", format!("127.0.0.1:{port}")));
    let running = scene.run();
    source.publish(&[
        order("dies-once", &json!({"do": "fail", "times": 3})),
        order("bad", &json!({"do": "permanent"})),
    ]);
    until("two letters", PATIENCE, || {
        letter(port, "attempts-exhausted").is_some() && letter(port, "permanent").is_some()
    });
    let [redriven, purged] =
        ["attempts-exhausted", "permanent"].map(|reason| letter(port, reason).expect("a letter"));
    assert_eq!(act(port, "redrive", &redriven), (200, "redriven".to_owned()));
    until("its effect", PATIENCE, || scene.count(Kind::Effect).contains_key("dies-once"));
    assert_eq!(act(port, "purge", &purged), (200, "purged".to_owned()));
    for id in [&redriven, &purged] {
        assert_eq!(act(port, "redrive", id), (410, "absent".to_owned()));
    }
    until("an empty source", PATIENCE, || source.is_empty());
    stop(vec![running]);
    assert_eq!((scene.count(Kind::Start)["dies-once"], scene.count(Kind::Effect)["dies-once"]), (4, 1));
    assert!(!scene.count(Kind::Effect).contains_key("bad"));
    let log = scene.execute(&["dlq", "log", "onceward.toml", "--json"]);
    let entries: Vec<_> = log.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let entries: Vec<_> = entries.iter().map(|entry: &Value| (&entry["action"], &entry["user"])).collect();
    let ann = json!("ann, status page");
    let actions = ["redrive", "redriven", "purged"].map(Value::from);
    assert_eq!(entries, actions.iter().map(|action| (action, &ann)).collect::<Vec<_>>());
}

#[test]
fn letters_of_rabbitmq_are_redriven_and_purged_by_the_page() {
    let [queue, dead] = ["page", "page.dead"].map(|name| Queue::declare(name, &[]));
    let setup = rabbitmq::on(&queue, letters_to(without_source(), &dead.name)).set("scope", "page");
    one_is_redriven_and_one_purged(&setup, &queue);
    until("no letter", PATIENCE, || dead.is_empty());
}

#[test]
fn letters_of_kafka_are_redriven_and_purged_by_the_page() {
    let (topic, dead) = (Topic::create("page", 2), Topic::create("page.dead", 1));
    one_is_redriven_and_one_purged(&letters_to(kafka::setup(&topic), dead.name()), &topic);
}

#[test]
fn letters_of_sqs_are_redriven_and_purged_by_the_page() {
    let [queue, dead] = ["page", "page-dead"].map(|name| SqsQueue::create(name, &[]));
    let setup = with_redis(sqs::setup(&queue), Redis::shared()).set("scope", "page-sqs");
    one_is_redriven_and_one_purged(&letters_to(setup, &dead.url), &queue);
    until("no letter", PATIENCE, || dead.is_empty());
}
