//! A trace crosses every broker, and every handler gets the context of its run.

use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::otlp::{Collector, Span};
use onceward_test_support::orders::order;
use onceward_test_support::process::until;
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::json;

use crate::kafka::topic::Topic;
use crate::pair::{scene, stop, without_source};
use crate::pubsub::subscription::Subscription;
use crate::rabbitmq::queue::Queue as RabbitQueue;
use crate::sqs::queue::Queue as SqsQueue;
use crate::stage::{PATIENCE, worker};
use crate::{kafka, pubsub, rabbitmq, sqs};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn to_rabbitmq(setup: Setup, queue: &RabbitQueue<'_>) -> Setup {
    setup
        .without("handler")
        .set("handler.publish.rabbitmq.url", queue.broker.url())
        .set("handler.publish.rabbitmq.routing_key", queue.name.as_str())
}

fn to_kafka(setup: Setup, topic: &Topic<'_>) -> Setup {
    setup
        .without("handler")
        .set("handler.publish.kafka.brokers", vec![topic.broker.bootstrap()])
        .set("handler.publish.kafka.topic", topic.name.as_str())
}

fn to_sqs(setup: Setup, queue: &SqsQueue) -> Setup {
    setup
        .without("handler")
        .set("handler.publish.sqs.queue_url", queue.url.as_str())
        .set("handler.publish.sqs.region", sqs::REGION)
        .set("handler.publish.sqs.endpoint", ElasticMq::shared().endpoint())
}

fn to_pubsub(setup: Setup, subscription: &Subscription<'_>) -> Setup {
    setup
        .without("handler")
        .set("handler.publish.pubsub.topic", subscription.topic.as_str())
        .set("handler.publish.pubsub.endpoint", subscription.server.endpoint())
        .set("handler.publish.pubsub.credentials", "anonymous")
}

/// Lines of a file that have headers.
fn from_file(setup: Setup) -> Setup {
    setup.set("source.file.path", "orders.ndjson").set("source.file.format", "envelope")
}

/// Writes down the context that its message has.
fn to_file(setup: Setup) -> Setup {
    let script =
        "echo \"$ONCEWARD_HEADER_TRACEPARENT $ONCEWARD_HEADER_TRACESTATE\" > seen.new; mv seen.new seen";
    setup.without("handler").set("handler.exec.command", vec!["sh", "-c", script])
}

/// A folder with a message that is part of a trace.
fn traced(collector: &Collector, setup: Setup) -> Scene {
    let scene = scene(&setup.set("telemetry.otlp", collector.url()));
    let envelope = json!({
        "payload": order("one", &json!({})),
        "headers": {"traceparent": format!("00-{TRACE}-{PARENT}-01"), "tracestate": "a=1"},
    });
    scene.write("orders.ndjson", format!("{envelope}\n").as_bytes());
    scene
}

/// The only span of a name, or with a name that begins so, within another.
fn child(spans: &[Span], name: &str, parent: &str) -> Span {
    let found: Vec<_> =
        spans.iter().filter(|span| span.parent == parent && span.name.starts_with(name)).collect();
    assert_eq!(found.len(), 1, "{name} in {parent}: {spans:#?}");
    found[0].clone()
}

#[test]
fn a_trace_crosses_every_broker_and_also_those_that_follow_each_other() {
    let collector = Collector::start();
    let rabbit = ["trace.1", "trace.2"].map(|name| RabbitQueue::declare(name, &[]));
    let topics = ["trace-1", "trace-2"].map(|name| Topic::create(name, 1));
    let queues = ["trace-1", "trace-2"].map(|name| SqsQueue::create(name, &[]));
    let subscriptions = ["trace-1", "trace-2"].map(|name| Subscription::create(name, &json!({})));
    let from_kafka = |topic| kafka::setup(topic).set("source.kafka.properties.auto.offset.reset", "earliest");
    let hops = [
        to_rabbitmq(from_file(without_source()), &rabbit[0]),
        to_rabbitmq(rabbitmq::on(&rabbit[0], without_source()), &rabbit[1]),
        to_kafka(rabbitmq::on(&rabbit[1], without_source()), &topics[0]),
        to_kafka(from_kafka(&topics[0]), &topics[1]),
        to_sqs(from_kafka(&topics[1]), &queues[0]),
        to_sqs(sqs::setup(&queues[0]), &queues[1]),
        to_pubsub(sqs::setup(&queues[1]), &subscriptions[0]),
        to_pubsub(pubsub::setup(&subscriptions[0]), &subscriptions[1]),
        to_file(pubsub::setup(&subscriptions[1])),
    ];
    let scenes: Vec<_> = hops
        .into_iter()
        .enumerate()
        .map(|(number, setup)| traced(&collector, setup.set("scope", format!("hop-{number}"))))
        .collect();
    let running: Vec<_> = scenes.iter().map(Scene::run).collect();
    let last = scenes[8].path("seen");
    until("the last handler has run", PATIENCE, || last.exists());
    stop(running);

    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
    let mut parent = PARENT.to_owned();
    for system in
        ["file", "rabbitmq", "rabbitmq", "kafka", "kafka", "aws_sqs", "aws_sqs", "gcp_pubsub", "gcp_pubsub"]
    {
        let delivery = child(&spans, "process ", &parent);
        assert_eq!(delivery.attribute("messaging.system").as_deref(), Some(system));
        parent = child(&spans, "handle", &delivery.id).id;
    }
    let seen = std::fs::read_to_string(last).expect("what the last handler wrote");
    assert_eq!(seen, format!("00-{TRACE}-{parent}-01 a=1\n"));
}

#[test]
fn every_handler_with_room_for_headers_gets_the_context_of_its_run() {
    let web = Collector::start();
    let seen = |scene: &Scene| std::fs::read_to_string(scene.path("seen")).unwrap_or_default();
    let script = "while read -r line; do echo \"$line\" > seen; echo '{\"id\":1,\"ok\":true}'; done";
    let base = || from_file(worker().without("handler"));
    for (handler, setup) in [
        ("exec", to_file(base())),
        (
            "worker",
            base().set("handler.worker.command", vec!["sh", "-c", script]).set("handler.worker.processes", 1),
        ),
        ("http", base().set("handler.http.url", web.url())),
        (
            "sql",
            base()
                .set("guarantee", "effectively-once")
                .set("handler.sql.statement", "INSERT INTO effects SELECT $1, $2, $3, $4")
                .set("handler.sql.timeout", "700ms"),
        ),
    ] {
        let collector = Collector::start();
        let scene = traced(&collector, setup);
        scene.database().execute("CREATE TABLE effects (a, b, c, d)");
        let ended = scene.run_to_end();
        assert_eq!(ended.code(), Some(0), "{handler}: {ended:#?}");
        let spans = collector.spans();
        let delivery = child(&spans, "process ", PARENT);
        let run = child(&spans, "handle", &delivery.id);
        let parent = format!("00-{TRACE}-{}-01", run.id);
        match handler {
            "exec" => assert_eq!(seen(&scene), format!("{parent} a=1\n")),
            "worker" => {
                let line: serde_json::Value = serde_json::from_str(&seen(&scene)).expect("a request");
                assert_eq!(line["headers"], json!({"traceparent": parent, "tracestate": "a=1"}));
            }
            "http" => {
                let head = &web.requests()[0].head;
                for line in [format!("traceparent: {parent}\n"), "tracestate: a=1\n".to_owned()] {
                    assert!(head.contains(&line), "{line} is not in {head}");
                }
            }
            // A statement gets no headers.
            _ => assert_eq!(run.attribute("onceward.attempt").as_deref(), Some("1")),
        }
    }
}
