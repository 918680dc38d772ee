//! The configuration of a Kafka source: [`KafkaConfig`] and [`TopicConfig`].

use std::collections::HashSet;
use std::time::Duration;

use onceward::{Error, OwnHeaders};
use rdkafka::ClientConfig;

use crate::client_config::ConsumerClientConfig;
use crate::connection::KafkaConnection;
use crate::error;
use crate::retry::topic::{RetryTopic, check_retry_topics};

const OPERATION: &str = "consume Kafka topics";
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The configuration of a [`KafkaConsumer`](crate::KafkaConsumer).
///
/// ```
/// # use onceward_kafka::KafkaConfig;
/// let mut config = KafkaConfig::new(["kafka.example:9092"], ["orders"], "billing");
/// config.connection.properties.insert("security.protocol".into(), "ssl".into());
/// assert!(config.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KafkaConfig {
    /// The cluster, and how to connect.
    pub connection: KafkaConnection,
    /// The consumer group.
    pub group: String,
    /// The topics, and how they are consumed.
    pub topics: TopicConfig,
}

/// The topics of a source, and how they are consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicConfig {
    /// The names of the topics. They must exist.
    pub names: Vec<String>,
    /// Topics in which records wait for their next attempt, at the price of their order. Default empty: records wait in this
    /// process.
    pub retry_topics: Vec<RetryTopic>,
    /// Which `onceward-` headers are trusted, and the secret that copies in retry topics are sealed with: the same as the
    /// pipeline's. By default none: then a copy has its position in the retry topic.
    pub own_headers: OwnHeaders,
    /// The interval between commits while messages are settled, 10 ms to 60 s; default 100 ms. After a crash the records settled
    /// since the last commit are redelivered, and found completed.
    pub commit_interval: Duration,
    /// How long a revoked partition waits for running handlers, up to 60 s; default 5 s. Records that have not started are given
    /// back at once. It is limited to half of `max.poll.interval.ms`, within which the group's rebalance must end.
    pub drain_timeout: Option<Duration>,
    /// After how long without a record a partition that has records is read again, 5 s to 1 h; default 30 s. If that fails, the
    /// client is recreated.
    pub stall_timeout: Duration,
    /// The number of messages that wait in this process for the pipeline, at least 1; default 2,000. Partitions are paused beyond.
    pub buffer_messages: usize,
    /// The bytes of these messages, at least 1; default 16 MiB. A single message may exceed it.
    pub buffer_bytes: usize,
}

impl TopicConfig {
    /// Consumes the topics `names`, with the defaults.
    pub fn new<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self {
            names: names.into_iter().map(Into::into).collect(),
            retry_topics: Vec::new(),
            own_headers: OwnHeaders::default(),
            commit_interval: Duration::from_millis(100),
            drain_timeout: None,
            stall_timeout: Duration::from_secs(30),
            buffer_messages: 2000,
            buffer_bytes: 16 * 1024 * 1024,
        }
    }

    /// Returns how long a revoked partition waits.
    pub(crate) fn drain(&self) -> Duration {
        self.drain_timeout.unwrap_or(DEFAULT_DRAIN_TIMEOUT)
    }

    /// Limits the drain to half of the poll interval of `client`.
    pub(crate) fn limit_drain(mut self, client: &ClientConfig) -> Self {
        let poll = client.get("max.poll.interval.ms").and_then(|set| set.parse().ok());
        let limit = Duration::from_millis(poll.unwrap_or(300_000)) / 2;
        self.drain_timeout = Some(self.drain().min(limit));
        self
    }

    /// Returns the names of the consumed topics, retry topics included.
    pub(crate) fn consumed(&self) -> Vec<&str> {
        let retry = self.retry_topics.iter().map(|topic| topic.name.as_str());
        self.names.iter().map(String::as_str).chain(retry).collect()
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the problem and the fix.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |what: &'static str| Err(error::config_error(OPERATION, what));
        if self.names.is_empty() || self.names.iter().any(String::is_empty) {
            return invalid("set at least one topic, each with a name");
        }
        if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&self.commit_interval) {
            return invalid("commit_interval must be 10 ms to 60 s");
        }
        if self.drain_timeout > Some(Duration::from_secs(60)) {
            return invalid("drain_timeout must be at most 60 s");
        }
        if !(Duration::from_secs(5)..=Duration::from_secs(3600)).contains(&self.stall_timeout) {
            return invalid("stall_timeout must be 5 s to 1 h");
        }
        let distinct: HashSet<_> = self.names.iter().collect();
        if distinct.len() < self.names.len() {
            return invalid("a topic is named twice; name each topic once");
        }
        check_retry_topics(&self.retry_topics, &self.names)?;
        if self.buffer_messages == 0 || self.buffer_bytes == 0 {
            return invalid("buffer_messages and buffer_bytes must be at least 1");
        }
        Ok(())
    }
}

impl KafkaConfig {
    /// Consumes `topics` of the cluster of `brokers` in the group `group`, with the defaults.
    pub fn new<B: Into<String>, N: Into<String>>(
        brokers: impl IntoIterator<Item = B>,
        topics: impl IntoIterator<Item = N>,
        group: impl Into<String>,
    ) -> Self {
        let (connection, topics) = (KafkaConnection::new(brokers), TopicConfig::new(topics));
        Self { connection, group: group.into(), topics }
    }

    /// Checks the values, and that they fit together. Reads the password file.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the problem and the fix.
    pub fn check(&self) -> Result<(), Error> {
        self.connection.check()?;
        self.topics.check()?;
        ConsumerClientConfig::build(self.client()).map(drop)
    }

    /// Returns the client's configuration with the group, without the properties that the guarantees require.
    #[doc(hidden)]
    #[must_use]
    pub fn client(&self) -> ClientConfig {
        let mut client = self.connection.client();
        client.set("group.id", &self.group);
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> KafkaConfig {
        KafkaConfig::new(["h:9092"], ["orders"], "billing")
    }

    #[test]
    fn invalid_values_are_rejected() {
        assert!(config().check().is_ok());
        for spoil in [
            (|config| config.connection.brokers.clear()) as fn(&mut KafkaConfig),
            |config| config.group.clear(),
            |config| config.topics.names.clear(),
            |config| config.topics.names.push(String::new()),
            |config| config.topics.names.push("orders".into()),
            |config| config.topics.stall_timeout = Duration::from_secs(4),
            |config| config.topics.commit_interval = Duration::ZERO,
            |config| config.topics.retry_topics = vec![RetryTopic::new("orders", Duration::from_secs(5))],
            |config| config.topics.retry_topics = vec![RetryTopic::new("r", Duration::from_millis(999))],
            |config| config.topics.retry_topics = vec![RetryTopic::new("r", Duration::from_secs(5)); 2],
            |config| config.topics.drain_timeout = Some(Duration::from_secs(61)),
            |config| config.topics.buffer_messages = 0,
            |config| config.topics.buffer_bytes = 0,
            |config| drop(config.connection.properties.insert("group.id".into(), "other".into())),
            |config| drop(config.connection.properties.insert("enable.auto.commit".into(), "true".into())),
        ] {
            let mut config = config();
            spoil(&mut config);
            assert!(config.check().is_err(), "{config:?}");
        }
    }

    #[test]
    fn a_shorter_session_or_poll_interval_never_makes_the_drain_invalid() {
        let mut config = config();
        let drain = |config: &KafkaConfig| config.topics.clone().limit_drain(&config.client()).drain();
        assert_eq!(drain(&config), Duration::from_secs(5));
        config.connection.properties.insert("session.timeout.ms".into(), "1000".into());
        config.connection.properties.insert("max.poll.interval.ms".into(), "3000".into());
        assert!(config.check().is_ok());
        assert_eq!(drain(&config), Duration::from_millis(1500));
    }

    #[test]
    fn the_values_of_properties_are_not_formatted() {
        let mut config = config();
        config.connection.properties.insert("sasl.password".into(), "canary".into());
        let text = format!("{config:?}");
        assert!(text.contains("sasl.password") && !text.contains("canary"), "{text}");
    }
}
