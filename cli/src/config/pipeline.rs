//! `[pipeline]`, `[retry]`, `[dead_letter]` and `[telemetry]`: how messages flow and what is reported about it.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use onceward_plugin::value::{Address, ByteCount, HumanDuration, Secret};
use onceward_plugin::{choice, table};

use super::key::OrderBy;

/// How many messages run concurrently, and in which order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PipelineConfig {
    /// How many handlers run concurrently, from 1 to 65536.
    pub concurrency: u32,
    /// Whether the number of handlers that run concurrently adapts to what their other side can take: up to `concurrency` while
    /// runs do not become slower by it, fewer when they do or find the handler unavailable.
    pub adaptive_concurrency: bool,
    /// How many handlers may start per second in this process, from 0.001 to 1000000, with bursts of a tenth of a second's
    /// share. Duplicates do not count. No limit when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<f64>,
    /// What is kept in order. By default the source's own order: `partition` for a partitioned log, `key` for a queue with
    /// message groups or an ordered subscription, `none` for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ordering: Option<Ordering>,
    /// What keeps messages in one lane; required with `ordering = "key"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_by: Option<OrderBy>,
    /// How many messages that can run may be held in memory, from 1 to 1048576; at least `concurrency`.
    pub max_in_flight: u32,
    /// How many more may be held that wait: for a retry, behind another of their order key, for a claim of another process.
    /// From 1 to 16777216. When left out: four times `max_in_flight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_waiting: Option<u32>,
    /// How many messages of one partition may wait before the partition is paused, from 1 to 16777216. When left out:
    /// half of `max_in_flight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_waiting_per_partition: Option<u32>,
    /// How many bytes of messages may be held in memory.
    pub max_in_flight_bytes: ByteCount,
    /// The largest payload that is handled; a message with a larger one is dead-lettered unread. When left out: no limit but
    /// the broker's, and `max_message_bytes` of a file source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_message_bytes: Option<ByteCount>,
    /// How many messages go to the store in one call, from 1 to 4096; at most `max_in_flight`.
    pub max_batch: u32,
    /// How many messages (in order: sequences of up to `lane_batch`) may be claimed before a handler is free for them, so that handlers do not wait for claims, from 0 to 65536.
    /// Only as many are as are needed for that; a crash leaves their claims to expire. Not for SQL handlers, nor with `rate_limit` or `adaptive_concurrency`.
    pub claims_ahead: u32,
    /// How many consecutive messages of a partition or order key are claimed together at most, from 1 to 4096; as many as
    /// their handlers, which run one after the other, are done with in a quarter of a second. Not for SQL handlers. 1: the
    /// next one is claimed when the one before it is settled.
    pub lane_batch: u32,
    /// Whether intake pauses while the handler is unavailable, and single messages probe whether it works again.
    pub breaker: bool,
    /// This many different messages that fail in a row, with no success in between, count as a failure of the handler,
    /// from 0 to 10000. 0: only a handler that reports itself unavailable does.
    pub breaker_keys: u32,
    /// How long a shutdown waits for running handlers, up to 1h. A handler that still runs then is cancelled, and its
    /// message is redelivered.
    pub drain_timeout: HumanDuration,
    /// How long a handler that is cancelled (its `timeout` or the drain deadline has passed) may take to end, up to 1h. A
    /// process gets SIGTERM at first, and SIGKILL shortly before this time has passed.
    pub cancel_grace: HumanDuration,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self {
            concurrency: 16,
            adaptive_concurrency: false,
            rate_limit: None,
            ordering: None,
            order_by: None,
            max_in_flight: 1024,
            max_waiting: None,
            max_waiting_per_partition: None,
            max_in_flight_bytes: ByteCount::mib(256),
            max_message_bytes: None,
            max_batch: 256,
            claims_ahead: 0,
            lane_batch: 256,
            breaker: true,
            breaker_keys: 20,
            drain_timeout: HumanDuration::from_secs(25),
            cancel_grace: HumanDuration::from_secs(4),
        }
    }
}

choice! {
    /// What is kept in order.
    Ordering {
        /// The messages of a partition.
        Partition,
        /// The messages with the same value of `order_by`.
        Key,
        /// Nothing.
        #[default]
        None,
    }
}

/// How failed messages are tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// How many times a message is tried in all, from 1 to 10000.
    pub max_attempts: u32,
    /// The wait after the first failure; it doubles after each further one.
    pub initial: HumanDuration,
    /// The longest wait, up to 24h.
    pub max: HumanDuration,
    /// How chance spreads the waits.
    pub jitter: Jitter,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_attempts: 10,
            initial: HumanDuration::from_secs(1),
            max: HumanDuration::from_secs(300),
            jitter: Jitter::Full,
        }
    }
}

choice! {
    /// How chance spreads the waits between attempts.
    Jitter {
        /// Not at all.
        None,
        /// Anywhere between nothing and the whole wait.
        #[default]
        Full,
        /// Anywhere between half and the whole wait.
        Equal,
        /// Anywhere between the initial wait and three times the last one.
        Decorrelated,
    }
}

table! {
    /// Where messages go that cannot be handled.
    DeadLetterConfig [] {
        /// A queue, topic or queue URL of the same broker; a path for a file source, where a relative one starts from the
        /// directory of the configuration file.
        pub to: Address,
    }
}

/// What is reported about a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// The address that serves `/metrics`, `/status`, `/health/live` and `/health/ready`; no listener when left out.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "listen_address")]
    #[schemars(with = "Option<String>")]
    pub listen: Option<SocketAddr>,
    /// The token with which the status page redrives and purges dead letters: at least 16 bytes. Without it the page changes
    /// nothing. It is sent as `Authorization: Bearer`, without TLS: let others reach the listener through a proxy with TLS only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// A file that holds it, instead of `token`. It is read at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The OpenTelemetry collector that traces and metrics go to, by OTLP over HTTP: `http://collector:4318`; log lines as
    /// well with `OTEL_LOGS_EXPORTER=otlp`. The standard variables `OTEL_*` take precedence; without either nothing is
    /// exported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<Address>,
    /// Whether the ids of trace and span are kept with the record of a completed key, in 34 bytes: spans of its duplicates link
    /// to that span, and `keys explain` prints it. Only where traces are exported, and for those that are sampled. Set it once
    /// all workers of the scope have this version: older ones take the ids for a part of the result.
    pub keep_trace_context: bool,
    /// How log lines are written.
    pub log: LogFormat,
}

fn listen_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(|_| {
        de::Error::custom(
            "is not an address to listen on; write an IP address and a port, such as 127.0.0.1:9464",
        )
    })
}

choice! {
    /// How log lines are written.
    LogFormat {
        /// For people.
        #[default]
        Text,
        /// One JSON object a line.
        Json,
    }
}
