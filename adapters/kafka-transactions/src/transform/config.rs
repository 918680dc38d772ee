//! The configuration of a transform: [`TransformConfig`].

use std::time::Duration;

use onceward::Error;
use onceward::retry::{Backoff, Jitter, RetryPolicy};
use onceward_kafka::KafkaConfig;
use onceward_kafka::internal::{ConsumerClientConfig, config_error, enable_warnings};
use rdkafka::ClientConfig;

const OPERATION: &str = "run a transform";

/// The configuration of a [`KafkaTransform`](crate::KafkaTransform).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransformConfig {
    /// The cluster, the group and the topics. Of [`TopicConfig`](onceward_kafka::TopicConfig) only the names are used.
    pub source: KafkaConfig,
    /// The transactional id: unique for each process of the group, and the same after a restart, so that an open transaction is
    /// aborted at once. Of two processes with the same id the older one is fenced and ends.
    pub transactional_id: String,
    /// The most records of one transaction, 1 to 100,000; default 1,000. Two such batches are in memory at most: one is committed
    /// while the next one is transformed.
    pub batch_records: usize,
    /// The most bytes of their payloads, at least 1; default 16 MiB. A single record may exceed it. In memory are at most two
    /// batches of so many bytes, and what was produced for them.
    pub batch_bytes: usize,
    /// How long a batch waits for more records, up to 10 s; default 100 ms. While the one before is committed it grows further.
    pub linger: Duration,
    /// The number of keys of a batch that are transformed concurrently, at least 1; default 16.
    pub concurrency: usize,
    /// The timeout of a commit, 1 s to 60 s; default 20 s. After it the outcome is unknown: the producer is recreated, and the
    /// group's offset shows the outcome.
    pub commit_timeout: Duration,
    /// The timeout of one run of the transformation, at least 1 ms; default 30 s.
    pub transform_timeout: Duration,
    /// How often and when a failed record is retried, in its place. Attempts are counted in this process.
    pub retry: RetryPolicy,
    /// The topic for records that failed permanently, including those whose results the broker rejects permanently. Without it
    /// such a record ends the run. A letter that exceeds the topic's limit is sent without payload: its headers have the
    /// position of the record, and `onceward-oversize-bytes` its size.
    pub dead_letters: Option<String>,
}

impl TransformConfig {
    /// Transforms the records of `source`, with the defaults.
    pub fn new(source: KafkaConfig, transactional_id: impl Into<String>) -> Self {
        let backoff = Backoff {
            initial: Duration::from_millis(200),
            max: Duration::from_secs(5),
            jitter: Jitter::Full,
        };
        Self {
            source,
            transactional_id: transactional_id.into(),
            batch_records: 1000,
            batch_bytes: 16 * 1024 * 1024,
            linger: Duration::from_millis(100),
            concurrency: 16,
            commit_timeout: Duration::from_secs(20),
            transform_timeout: Duration::from_secs(30),
            retry: RetryPolicy { backoff, ..RetryPolicy::default() },
            dead_letters: None,
        }
    }

    /// Checks the values, and that they fit together.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the problem and the fix.
    pub fn check(&self) -> Result<(), Error> {
        self.source.check()?;
        let invalid = |what: &'static str| Err(config_error(OPERATION, what));
        if self.transactional_id.is_empty() {
            return invalid("transactional_id is empty; set a unique one for each process");
        }
        if !(1..=100_000).contains(&self.batch_records) || self.batch_bytes == 0 || self.concurrency == 0 {
            return invalid("batch_records must be 1 to 100000, batch_bytes and concurrency at least 1");
        }
        if self.linger > Duration::from_secs(10) {
            return invalid("linger must be at most 10 s");
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(60)).contains(&self.commit_timeout) {
            return invalid("commit_timeout must be 1 s to 60 s");
        }
        if self.transform_timeout < Duration::from_millis(1) {
            return invalid("transform_timeout must be at least 1 ms");
        }
        if self.retry.max_attempts == 0 {
            return invalid("retry.max_attempts must be at least 1");
        }
        let ConsumerClientConfig { client, .. } = self.consumer()?;
        let poll_limit =
            client.get("max.poll.interval.ms").and_then(|set| set.parse().ok()).unwrap_or(300_000);
        if self.commit_timeout * 2 >= Duration::from_millis(poll_limit) {
            return invalid(
                "twice commit_timeout must be less than max.poll.interval.ms, or the member is evicted while it commits; lower \
                 commit_timeout or raise max.poll.interval.ms",
            );
        }
        Ok(())
    }

    pub(super) fn consumer(&self) -> Result<ConsumerClientConfig, Error> {
        ConsumerClientConfig::build(self.source.client())
    }

    pub(super) fn producer(&self) -> ClientConfig {
        let mut client = self.source.client();
        client
            .set("transactional.id", &self.transactional_id)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // Nothing is done at a confirmed record: the commit confirms all of them.
            .set("delivery.report.only.error", "true")
            .set("allow.auto.create.topics", "false");
        enable_warnings(&mut client);
        // An open transaction of a process that died blocks readers for this long, unless another producer takes over its id.
        let transaction = match client.get("transaction.timeout.ms") {
            Some(set) => set.parse().unwrap_or(u128::MAX),
            None => {
                let timeout = self.commit_timeout.as_millis() * 2;
                client.set("transaction.timeout.ms", timeout.to_string());
                timeout
            }
        };
        // Some calls wait for a request to a stopped broker, whatever their timeout; librdkafka requires the socket timeout to be
        // shorter than the transaction timeout.
        if client.get("socket.timeout.ms").is_none() {
            let socket = transaction.saturating_sub(100).clamp(900, 10_000);
            client.set("socket.timeout.ms", socket.to_string());
        }
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> TransformConfig {
        TransformConfig::new(KafkaConfig::new(["h:1"], ["in"], "group"), "id")
    }

    #[test]
    fn the_client_accepts_its_timeouts_for_short_and_long_transactions() {
        for (commit_timeout, written) in [(1, None), (60, None), (10, Some("1000")), (10, Some("900000"))] {
            let mut config = config();
            config.commit_timeout = Duration::from_secs(commit_timeout);
            let written = written.map(|limit| ("transaction.timeout.ms".to_owned(), limit.to_owned()));
            config.source.connection.properties.extend(written);
            let made = config.producer().create::<rdkafka::producer::BaseProducer>();
            assert!(made.is_ok(), "{:?}", made.err());
        }
    }

    #[test]
    fn invalid_values_are_rejected() {
        assert!(config().check().is_ok());
        for spoil in [
            (|config| config.transactional_id.clear()) as fn(&mut TransformConfig),
            |config| config.source.topics.names.clear(),
            |config| config.batch_records = 0,
            |config| config.batch_bytes = 0,
            |config| config.concurrency = 0,
            |config| config.linger = Duration::from_secs(11),
            |config| config.commit_timeout = Duration::from_millis(999),
            |config| config.retry.max_attempts = 0,
            |config| config.transform_timeout = Duration::ZERO,
            |config| {
                drop(
                    config.source.connection.properties.insert("max.poll.interval.ms".into(), "40000".into()),
                )
            },
            |config| {
                let level = "read_uncommitted".to_owned();
                drop(config.source.connection.properties.insert("isolation.level".into(), level));
            },
        ] {
            let mut config = config();
            spoil(&mut config);
            assert!(config.check().is_err(), "{config:?}");
        }
    }
}
