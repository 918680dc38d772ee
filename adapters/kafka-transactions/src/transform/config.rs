//! What a transform consumes and how it commits: [`TransformConfig`].

use std::time::Duration;

use onceward::Error;
use onceward::retry::{Backoff, Jitter, RetryPolicy};
use rdkafka::ClientConfig;

use onceward_kafka::KafkaConfig;
use onceward_kafka::internal as log;
use onceward_kafka::internal::error;
use onceward_kafka::internal::{Settled, settled};

const OPERATION: &str = "run a transform";

/// What a [`KafkaTransform`](super::KafkaTransform) consumes and how it commits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransformConfig {
    /// The topics and the group, and how to connect. Of [`TopicConfig`](onceward_kafka::TopicConfig) only the names are used.
    pub source: KafkaConfig,
    /// Whose transactions they are: another one for each process of the group, and the same after a restart, so that what it
    /// had left open is aborted at once. Two with the same id at a time: the older one is fenced and ends.
    pub transactional_id: String,
    /// The most records of one transaction, from 1 to 100,000; default 1,000.
    pub batch_records: usize,
    /// The most bytes of their payloads, at least 1; default 16 MiB. One record may exceed it.
    pub batch_bytes: usize,
    /// How long a batch waits for more records, up to 10 s; default 100 ms.
    pub linger: Duration,
    /// How many keys of a batch are transformed at the same time, at least 1; default 16.
    pub concurrency: usize,
    /// How long the answer to a commit is asked for, 1 s to 60 s; default 20 s. Then its outcome is unknown: the producer is made
    /// anew, and where the group stands tells.
    pub commit_timeout: Duration,
    /// How long one run of the transformation may take, from 1 ms; default 30 s.
    pub transform_timeout: Duration,
    /// How often and when a record is tried again, in its place. Attempts are counted in this process.
    pub retry: RetryPolicy,
    /// The topic for records that failed for good: those whose results the broker will never take are among them. Without one
    /// such a record ends the run. Of a record that does not fit into
    /// it a letter without payload is sent: the headers say where it stands in its topic, and `onceward-oversize-bytes` how
    /// large it is.
    pub dead_letters: Option<String>,
}

impl TransformConfig {
    /// A transform of `source`, with the defaults.
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

    /// Checks that the values can be used and go together.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming what is wrong and the fix.
    pub fn check(&self) -> Result<(), Error> {
        self.source.check()?;
        let wrong = |what: &'static str| Err(error::config(OPERATION, what));
        if self.transactional_id.is_empty() {
            return wrong("transactional_id is empty; give each process one of its own");
        }
        if !(1..=100_000).contains(&self.batch_records) || self.batch_bytes == 0 || self.concurrency == 0 {
            return wrong("batch_records must be 1 to 100000, batch_bytes and concurrency 1 at least");
        }
        if self.linger > Duration::from_secs(10) {
            return wrong("linger must be 10 s at most");
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(60)).contains(&self.commit_timeout) {
            return wrong("commit_timeout must be 1 s to 60 s");
        }
        if self.transform_timeout < Duration::from_millis(1) {
            return wrong("transform_timeout must be 1 ms at least");
        }
        if self.retry.max_attempts == 0 {
            return wrong("retry.max_attempts must be 1 at least");
        }
        let Settled { client, .. } = self.consumer()?;
        let poll_limit =
            client.get("max.poll.interval.ms").and_then(|set| set.parse().ok()).unwrap_or(300_000);
        if self.commit_timeout * 2 >= Duration::from_millis(poll_limit) {
            return wrong(
                "twice commit_timeout is not shorter than max.poll.interval.ms: the member would be evicted while it commits; \
                 lower the one or raise the other",
            );
        }
        Ok(())
    }

    pub(super) fn consumer(&self) -> Result<Settled, Error> {
        settled(self.source.client(), &self.source.topics)
    }

    pub(super) fn producer(&self) -> ClientConfig {
        let mut client = self.source.client();
        client
            .set("transactional.id", &self.transactional_id)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("allow.auto.create.topics", "false");
        log::level(&mut client);
        // What a process that died has left open holds up readers for this long, if nobody takes up its id.
        let transaction = match client.get("transaction.timeout.ms") {
            Some(set) => set.parse().unwrap_or(u128::MAX),
            None => {
                let timeout = self.commit_timeout.as_millis() * 2;
                client.set("transaction.timeout.ms", timeout.to_string());
                timeout
            }
        };
        // Some calls wait for a request to a broker that has gone, whatever limit they are given; librdkafka wants this to be
        // shorter than a transaction may be.
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
    fn the_client_takes_its_timeouts_however_short_or_long_a_transaction_may_be() {
        for (commit_timeout, written) in [(1, None), (60, None), (10, Some("1000")), (10, Some("900000"))] {
            let mut config = config();
            config.commit_timeout = Duration::from_secs(commit_timeout);
            let written = written.map(|limit| ("transaction.timeout.ms".to_owned(), limit.to_owned()));
            config.source.properties.extend(written);
            let made = config.producer().create::<rdkafka::producer::BaseProducer>();
            assert!(made.is_ok(), "{:?}", made.err());
        }
    }

    #[test]
    fn values_that_cannot_be_used_are_refused() {
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
            |config| drop(config.source.properties.insert("max.poll.interval.ms".into(), "40000".into())),
            |config| {
                let level = "read_uncommitted".to_owned();
                drop(config.source.properties.insert("isolation.level".into(), level));
            },
        ] {
            let mut config = config();
            spoil(&mut config);
            assert!(config.check().is_err(), "{config:?}");
        }
    }
}
