//! Metrics and traces over real brokers: a trace crosses all of them, and metrics name the queue or topic.

use std::io::{Read, Write};
use std::net::TcpStream;

use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::otlp::{Collector, Span};
use onceward_test_servers::ports::free_port;
use onceward_test_support::orders::order;
use onceward_test_support::process::until;
use onceward_test_support::setup::Setup;
use serde_json::json;

use crate::kafka::topic::Topic;
use crate::pair::{Waiting, scene, without_source};
use crate::rabbitmq::queue::Queue as RabbitQueue;
use crate::sqs::queue::Queue as SqsQueue;
use crate::stage::PATIENCE;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn to_rabbitmq(setup: Setup, queue: &RabbitQueue<'_>) -> Setup {
    setup
        .without("handler.worker")
        .set("handler.publish.rabbitmq.url", queue.broker.url())
        .set("handler.publish.rabbitmq.routing_key", queue.name.as_str())
}

fn to_kafka(setup: Setup, topic: &Topic<'_>) -> Setup {
    setup
        .without("handler.worker")
        .set("handler.publish.kafka.brokers", vec![topic.broker.bootstrap()])
        .set("handler.publish.kafka.topic", topic.name.as_str())
}

fn to_sqs(setup: Setup, queue: &SqsQueue) -> Setup {
    setup
        .without("handler.worker")
        .set("handler.publish.sqs.queue_url", queue.url.as_str())
        .set("handler.publish.sqs.region", crate::sqs::REGION)
        .set("handler.publish.sqs.endpoint", ElasticMq::shared().endpoint())
}

fn from_rabbitmq(queue: &RabbitQueue<'_>) -> Setup {
    crate::rabbitmq::on(queue, without_source())
}

/// Runs each configuration until its source is idle, one after the other.
fn run_all(collector: &Collector, hops: &[Setup]) {
    for (number, setup) in hops.iter().enumerate() {
        let setup = setup.clone().set("scope", format!("hop-{number}"));
        let scene = scene(&setup.set("telemetry.otlp", collector.url()));
        let envelope = json!({
            "payload": order("one", &json!({})),
            "headers": {"traceparent": format!("00-{TRACE}-{PARENT}-01"), "tracestate": "a=1"},
        });
        scene.write("orders.ndjson", format!("{envelope}\n").as_bytes());
        let running = scene.start(&mut scene.command(&["run", "onceward.toml", "--until-empty"]));
        let ended = running.wait_within(PATIENCE);
        assert_eq!(ended.code(), Some(0), "hop {number}: {ended:#?}");
    }
}

#[test]
fn a_trace_crosses_every_broker_and_also_those_that_follow_each_other() {
    let collector = Collector::start();
    let rabbit = ["trace.1", "trace.2"].map(|name| RabbitQueue::declare(name, &[]));
    let topics = ["trace-1", "trace-2"].map(|name| Topic::create(name, 1));
    let queues = ["trace-1", "trace-2"].map(|name| SqsQueue::create(name, &[]));
    let file = without_source().set("source.file.path", "orders.ndjson").set("source.file.format", "envelope");
    let kafka = |topic| crate::kafka::setup(topic).set("source.kafka.properties.auto.offset.reset", "earliest");
    run_all(&collector, &[
        to_rabbitmq(file, &rabbit[0]),
        to_rabbitmq(from_rabbitmq(&rabbit[0]), &rabbit[1]),
        to_kafka(from_rabbitmq(&rabbit[1]), &topics[0]),
        to_kafka(kafka(&topics[0]), &topics[1]),
        to_sqs(kafka(&topics[1]), &queues[0]),
        to_sqs(crate::sqs::setup(&queues[0]), &queues[1]),
        crate::sqs::setup(&queues[1]),
    ]);
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
    let child = |name: &str, parent: &str| -> Span {
        let found = spans.iter().find(|span| span.parent == parent && span.name.starts_with(name));
        found.cloned().unwrap_or_else(|| panic!("no {name} in {parent}: {spans:#?}"))
    };
    let mut parent = PARENT.to_owned();
    for system in ["file", "rabbitmq", "rabbitmq", "kafka", "kafka", "aws_sqs", "aws_sqs"] {
        let delivery = child("process ", &parent);
        assert_eq!(delivery.attribute("messaging.system").as_deref(), Some(system));
        parent = child("handle", &delivery.id).id;
    }
}

/// Scrapes until the metrics have all of `lines`.
fn has_metrics(setup: &Setup, lines: &[&str]) {
    let port = free_port().expect("a port");
    let scene = scene(&setup.clone().set("scope", "metrics").set("telemetry.listen", format!("127.0.0.1:{port}")));
    let running = scene.run();
    let scrape = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok().map(|_| answer)
    };
    for line in lines {
        until(line, PATIENCE, || scrape().is_some_and(|text| text.lines().any(|found| found.starts_with(line))));
    }
    running.kill();
}

#[test]
fn metrics_name_the_queue_or_topic_and_what_is_assigned() {
    let orders = [order("one", &json!({})), order("one", &json!({}))];
    let queue = RabbitQueue::declare("measured", &[]);
    queue.publish(&orders);
    has_metrics(&from_rabbitmq(&queue), &[
        "onceward_deliveries_total{scope=\"metrics\",source=\"rabbitmq\",origin=\"measured\",outcome=\"handled\"} 1",
        "onceward_deliveries_total{scope=\"metrics\",source=\"rabbitmq\",origin=\"measured\",outcome=\"duplicates\"} 1",
        "onceward_duplicate_age_seconds_count{scope=\"metrics\"} 1",
        "onceward_source_lag{scope=\"metrics\"} 0",
    ]);
    let topic = Topic::create("measured", 3);
    topic.publish(&orders);
    let setup = crate::kafka::setup(&topic).set("source.kafka.properties.auto.offset.reset", "earliest");
    has_metrics(&setup, &[
        "onceward_deliveries_total{scope=\"metrics\",source=\"kafka\",origin=\"measured\",outcome=\"handled\"} 1",
        "onceward_deliveries_total{scope=\"metrics\",source=\"kafka\",origin=\"measured\",outcome=\"duplicates\"} 1",
        "onceward_source_assigned_partitions{scope=\"metrics\"} 3",
        "onceward_source_lag{scope=\"metrics\"} 0",
    ]);
    let queue = SqsQueue::create("measured", &[]);
    queue.publish(&orders);
    has_metrics(&crate::sqs::setup(&queue), &[
        "onceward_deliveries_total{scope=\"metrics\",source=\"sqs\",origin=\"measured\",outcome=\"handled\"} 1",
        "onceward_deliveries_total{scope=\"metrics\",source=\"sqs\",origin=\"measured\",outcome=\"duplicates\"} 1",
        "onceward_settle_seconds_count{scope=\"metrics\"}",
    ]);
}
