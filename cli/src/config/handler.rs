//! `[handler.*]`: what is done with each message.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::address::Address;
use super::duration::HumanDuration;
use super::secret::Secret;
use super::table::{count, table};

/// What is done with each message: exactly one of these tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Handler {
    /// A POST to a URL.
    Http(HttpHandler),
    /// One process for each message.
    Exec(ExecHandler),
    /// Long-lived processes that read and answer JSON lines.
    Worker(WorkerHandler),
    /// A statement in the same transaction as the completion.
    Sql(SqlHandler),
    /// A confirmed publish to another broker.
    Publish(PublishHandler),
    /// A line on standard output.
    Stdout(StdoutHandler),
}

impl Handler {
    /// The name of the table: `http`, `exec`, `worker`, `sql`, `publish` or `stdout`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Exec(_) => "exec",
            Self::Worker(_) => "worker",
            Self::Sql(_) => "sql",
            Self::Publish(_) => "publish",
            Self::Stdout(_) => "stdout",
        }
    }

    /// The dotted path of the table that holds `timeout`, such as `handler.publish.kafka`.
    pub fn path(&self) -> String {
        match self {
            Self::Publish(target) => format!("handler.publish.{}", target.name()),
            other => format!("handler.{}", other.name()),
        }
    }

    /// How long one attempt may take.
    pub fn timeout(&self) -> HumanDuration {
        match self {
            Self::Http(handler) => handler.timeout,
            Self::Exec(handler) => handler.timeout,
            Self::Worker(handler) => handler.timeout,
            Self::Sql(handler) => handler.timeout,
            Self::Publish(PublishHandler::Rabbitmq(target)) => target.timeout,
            Self::Publish(PublishHandler::Kafka(target)) => target.timeout,
            Self::Publish(PublishHandler::Sqs(target)) => target.timeout,
            Self::Stdout(handler) => handler.timeout,
        }
    }
}

table! {
    /// A POST of the payload. 2xx completes; 408, 425, 429 and 5xx retry; 409 retries later; other 4xx dead-letter.
    HttpHandler [handler] {
        /// Where to post. Redirects are not followed.
        pub url: Address,
        /// Headers sent with every request, such as `Authorization`. Their values are never printed.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub headers: BTreeMap<String, Secret>,
    }
}

table! {
    /// One process for each message: payload on standard input, the rest in `ONCEWARD_*` variables. Exit 0 completes,
    /// 75 and signals retry, 65 dead-letters, other codes retry.
    ExecHandler [handler] {
        /// The program and its arguments. No shell is involved. It runs in the directory of the configuration file.
        pub command: Vec<Address>,
    }
}

table! {
    /// Long-lived processes: one JSON line in, one JSON line out.
    WorkerHandler [handler] {
        /// The program and its arguments. No shell is involved. It runs in the directory of the configuration file.
        pub command: Vec<Address>,
        /// How many processes run, from 1 to 1024.
        #[serde(default = "count::<4>")]
        pub processes: u32,
    }
}

table! {
    /// A statement in the same transaction as the completion. Needs a SQLite or Postgres store.
    SqlHandler [handler] {
        /// The statement. Its parameters: `$1` the payload, `$2` the key, `$3` the attempt from 1, `$4` the fence. In
        /// Postgres `$1` is text unless its place says otherwise: write `$1::jsonb` to look into it.
        pub statement: String,
        /// How many messages may share a transaction, from 1 to 1000 and no more than run at once: those that are ready
        /// together, one after the other, each in a savepoint. Worth it for statements of a few milliseconds.
        #[serde(default = "count::<1>")]
        pub batch: u32,
    }
}

table! {
    /// One line for each message on standard output.
    StdoutHandler [handler] {}
}

/// A confirmed publish to another broker: exactly one of these tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PublishHandler {
    /// To RabbitMQ.
    Rabbitmq(RabbitmqTarget),
    /// To a Kafka topic.
    Kafka(KafkaTarget),
    /// To an SQS queue.
    Sqs(SqsTarget),
}

impl PublishHandler {
    /// The name of the table: `rabbitmq`, `kafka` or `sqs`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rabbitmq(_) => "rabbitmq",
            Self::Kafka(_) => "kafka",
            Self::Sqs(_) => "sqs",
        }
    }
}

table! {
    /// A publish to RabbitMQ, confirmed and mandatory.
    RabbitmqTarget [rabbitmq, handler] {
        /// The exchange; empty for the default one, whose routing keys are queue names.
        #[serde(default)]
        pub exchange: String,
        /// The routing key.
        pub routing_key: String,
    }
}

table! {
    /// A publish to a Kafka topic, acknowledged by all replicas.
    KafkaTarget [kafka, handler] {
        /// The topic.
        pub topic: String,
    }
}

table! {
    /// A send to an SQS queue. Credentials come from the standard AWS chain.
    SqsTarget [sqs, handler] {
        /// The queue's URL. One that ends in `.fifo` is a FIFO queue.
        pub queue_url: Address,
    }
}
