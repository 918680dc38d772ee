//! Every example runs, against real servers where it needs them, and prints what its header says.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::kafka::Kafka;
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::pubsub::Pubsub;
use onceward_test_servers::rabbitmq::RabbitMq;
use onceward_test_servers::redis::Redis;

/// Longer than any example takes; one that hangs fails instead.
const PATIENCE: Duration = Duration::from_secs(120);

/// The block `text` of an example's header.
fn expected(source: &str) -> Vec<&str> {
    let header = source.lines().map_while(|line| line.strip_prefix("//!"));
    let block = header.skip_while(|line| line.trim() != "```text").skip(1);
    block.take_while(|line| line.trim() != "```").map(|line| line.strip_prefix(' ').unwrap_or(line)).collect()
}

/// Runs `program` with these arguments and compares what it prints with the header of `source`. Handlers run side by side,
/// so the order of the lines is left out.
fn runs(program: &str, source: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments).envs([("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = child.wait_with_output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{}: {stdout}{stderr}", ended.status);
    let mut printed: Vec<_> = stdout.lines().collect();
    let mut expected = expected(source);
    printed.sort_unstable();
    expected.sort_unstable();
    assert!(!expected.is_empty(), "the header has no text block");
    assert_eq!(printed, expected, "{stderr}");
}

#[test]
fn hello() {
    runs(env!("CARGO_BIN_EXE_hello"), include_str!("../hello.rs"), &[]);
}

#[test]
fn once_in_my_loop() {
    runs(env!("CARGO_BIN_EXE_once_in_my_loop"), include_str!("../once_in_my_loop.rs"), &[]);
}

#[test]
fn custom_store() {
    runs(env!("CARGO_BIN_EXE_custom_store"), include_str!("../custom_store/main.rs"), &[]);
}

#[test]
fn custom_key() {
    runs(env!("CARGO_BIN_EXE_custom_key"), include_str!("../custom_key.rs"), &[]);
}

#[test]
fn observe_mode() {
    runs(env!("CARGO_BIN_EXE_observe_mode"), include_str!("../observe_mode.rs"), &[]);
}

/// A database of its own on the server that the tests share.
fn database(name: &str) -> String {
    let postgres = Postgres::shared();
    postgres.sql(&format!("CREATE DATABASE {name}"));
    let url = postgres.url("postgres");
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

#[test]
fn rabbitmq_redis() {
    let (rabbitmq, redis) = (RabbitMq::shared(), Redis::shared());
    let source = include_str!("../rabbitmq_redis.rs");
    runs(env!("CARGO_BIN_EXE_rabbitmq_redis"), source, &[&rabbitmq.url(), &redis.url()]);
}

#[test]
fn sqs_postgres() {
    let source = include_str!("../sqs_postgres.rs");
    let arguments = [&*ElasticMq::shared().endpoint(), &*database("sqs_postgres")];
    runs(env!("CARGO_BIN_EXE_sqs_postgres"), source, &arguments);
}

#[test]
fn pubsub_redis() {
    let source = include_str!("../pubsub_redis.rs");
    let arguments = [&*Pubsub::shared().endpoint(), &*Redis::shared().url()];
    runs(env!("CARGO_BIN_EXE_pubsub_redis"), source, &arguments);
}

#[test]
fn kafka_postgres_effects() {
    let source = include_str!("../kafka_postgres_effects.rs");
    let arguments = [&*Kafka::shared().bootstrap(), &*database("kafka_postgres_effects")];
    runs(env!("CARGO_BIN_EXE_kafka_postgres_effects"), source, &arguments);
}

#[test]
fn outbox() {
    let source = include_str!("../outbox.rs");
    let arguments = [&*RabbitMq::shared().url(), &*database("outbox")];
    runs(env!("CARGO_BIN_EXE_outbox"), source, &arguments);
}
