//! `onceward bench` on RabbitMQ and SQS, with both stores.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::rabbitmq::RabbitMq;
use onceward_test_servers::redis::Redis;
use serde_json::Value;

use crate::stage::Stage;

pub(crate) fn measure(stage: &Stage) {
    let (redis, postgres) = (Redis::start(), Postgres::start());
    let (rabbitmq, sqs) = (RabbitMq::start(), ElasticMq::start());
    let stores = [("redis", Stage::redis(&redis)), ("postgres", Stage::postgres(&postgres))];
    for (broker, source) in
        [("rabbitmq", quorum_queue(stage, &rabbitmq)), ("sqs", standard_queue(stage, &sqs))]
    {
        // The SQS-compatible server is slow.
        let messages = stage.figures.messages(60_000) / if broker == "sqs" { 5 } else { 1 };
        for (store, table) in &stores {
            one(
                stage,
                &format!("{broker} + {store}"),
                messages,
                &format!("{source}{table}[handler.stdout]\n"),
            );
        }
    }
}

/// Measures a configuration, and reports it as the other parts are reported.
fn one(stage: &Stage, part: &str, messages: usize, tables: &str) {
    let file = stage.configuration(tables);
    if tables.contains("postgres") {
        stage.execute(&["migrate", &file]);
    }
    let (messages, rounds) = (messages.max(100).to_string(), stage.figures.rounds(5).to_string());
    let arguments = ["bench", &file, "--yes", "--json", "--messages", &messages, "--rounds", &rounds];
    let report: Value = serde_json::from_str(&stage.execute(&arguments)).unwrap();
    let rates = |name: &str| -> Vec<f64> {
        let mut runs: Vec<_> =
            report["runs"].as_array().unwrap().iter().filter(|run| run["name"] == name).collect();
        runs.sort_by_key(|run| run["round"].as_u64());
        runs.iter().map(|run| run["messages_per_second"].as_f64().unwrap()).collect()
    };
    let measured = ["one-by-one", "onceward", "tuned"].map(|name| (name, rates(name)));
    let variants = measured.each_ref().map(|(name, rates)| (*name, &rates[..]));
    stage.figures.report(part, messages.parse().unwrap(), ("raw", &rates("raw")), &variants);
}

/// The source whose temporary queues are quorum queues as well.
fn quorum_queue(stage: &Stage, broker: &RabbitMq) -> String {
    let queue = quorum(stage, broker);
    format!("[source.rabbitmq]\nurl = \"{}\"\nqueue = \"{queue}\"\n", broker.url())
}

/// Declares a quorum queue.
pub(crate) fn quorum(stage: &Stage, broker: &RabbitMq) -> String {
    let queue = stage.name("queue");
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    stage.runtime.block_on(async {
        let connection = Connection::connect(&broker.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), options, arguments).await.unwrap();
    });
    queue
}

fn standard_queue(stage: &Stage, server: &ElasticMq) -> String {
    let queue = stage.name("queue");
    let created = format!("{}/?Action=CreateQueue&QueueName={queue}", server.endpoint());
    let status =
        stage.runtime.block_on(async { reqwest::Client::new().post(created).send().await.unwrap().status() });
    assert!(status.is_success(), "{status}");
    format!(
        "[source.sqs]\nqueue_url = \"{0}/000000000000/{queue}\"\nregion = \"elasticmq\"\nendpoint = \"{0}\"\n",
        server.endpoint()
    )
}
