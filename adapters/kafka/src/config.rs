//! What a Kafka source consumes and how: [`KafkaConfig`].

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use onceward::{Error, OwnHeaders};
use rdkafka::ClientConfig;

use crate::auth::password::PasswordFile;
use crate::auth::plaintext;
use crate::client::log;
use crate::error;
use crate::retry::forwarder as retry;
use crate::retry::forwarder::RetryTopic;

/// What a [`KafkaConsumer`](crate::KafkaConsumer) consumes and how.
///
/// ```
/// # use onceward_kafka::KafkaConfig;
/// let mut config = KafkaConfig::new(["kafka.example:9092"], ["orders"], "billing");
/// config.properties.insert("security.protocol".into(), "ssl".into());
/// assert!(config.check().is_ok());
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KafkaConfig {
    /// Addresses of brokers to start from.
    pub brokers: Vec<String>,
    /// The consumer group.
    pub group: String,
    /// More properties of librdkafka. Those that would break what is promised are refused by [`check`](Self::check).
    pub properties: BTreeMap<String, String>,
    /// Lets a login go to other hosts without TLS (`sasl_plaintext`), or to whoever answers (verification that is off), where
    /// anybody on the way can take it. Refused unless true: for networks where nobody else can be.
    pub allow_plaintext: bool,
    /// The password of `sasl.username`, in a file that is looked at every 2 s: it may change while clients run, and holds for
    /// connections that are made from then on. It wins over `sasl.password`. A line end after it does not count.
    pub password_file: Option<PathBuf>,
    /// The topics, and how they are consumed.
    pub topics: TopicConfig,
}

/// Which topics are consumed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicConfig {
    /// The names of the topics. They must exist.
    pub names: Vec<String>,
    /// Topics in which records wait for their next attempt, where no order is kept. Empty by default: they wait in this process.
    pub retry_topics: Vec<RetryTopic>,
    /// Whose `onceward-` headers are believed, and what copies in retry topics are sealed with: the same as the pipeline's. By
    /// default nobody's: then a retry comes back at its position in the retry topic.
    pub own_headers: OwnHeaders,
    /// How often offsets are committed while messages are settled, 10 ms to 60 s; default 100 ms. After a crash what was
    /// settled since is delivered again, and found completed.
    pub commit_interval: Duration,
    /// How long a partition that is revoked waits for the handlers that run, up to 60 s; what has not started is given back at
    /// once. `None`, the default: 5 s. It is cut to half of `max.poll.interval.ms`, in which the group's rebalance must be over.
    pub drain_timeout: Option<Duration>,
    /// After how long without a record a partition that has some is read anew, 5 s to 1 h; default 30 s. If that does not help,
    /// the client is made anew.
    pub stall_timeout: Duration,
    /// How many messages wait in this process for the pipeline, at least 1; default 2,000. Partitions are paused beyond.
    pub buffer_messages: usize,
    /// How many bytes they may have, at least 1; default 16 MiB. One message may exceed it.
    pub buffer_bytes: usize,
}

impl TopicConfig {
    /// The topics `names`, with the defaults.
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

    /// How long a partition that is revoked waits.
    pub(crate) fn drain(&self) -> Duration {
        self.drain_timeout.unwrap_or(DRAIN)
    }

    /// With the drain that the rebalances of `client`'s group leave time for.
    pub(crate) fn fitted(mut self, client: &ClientConfig) -> Self {
        let poll = client.get("max.poll.interval.ms").and_then(|set| set.parse().ok());
        let most = Duration::from_millis(poll.unwrap_or(300_000)) / 2;
        self.drain_timeout = Some(self.drain().min(most));
        self
    }

    /// All that is consumed: the topics and their retry topics.
    pub(crate) fn consumed(&self) -> Vec<&str> {
        let retry = self.retry_topics.iter().map(|topic| topic.name.as_str());
        self.names.iter().map(String::as_str).chain(retry).collect()
    }

    /// Checks that the values can be used.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming what is wrong and the fix.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |what: &'static str| Err(error::config(OPERATION, what));
        if self.names.is_empty() || self.names.iter().any(String::is_empty) {
            return wrong("give at least one topic, each with a name");
        }
        if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&self.commit_interval) {
            return wrong("commit_interval must be 10 ms to 60 s");
        }
        if self.drain_timeout > Some(Duration::from_secs(60)) {
            return wrong("drain_timeout must be 60 s at most");
        }
        if !(Duration::from_secs(5)..=Duration::from_secs(3600)).contains(&self.stall_timeout) {
            return wrong("stall_timeout must be 5 s to 1 h");
        }
        let once: HashSet<_> = self.names.iter().collect();
        if once.len() < self.names.len() {
            return wrong("a topic is named twice; name each once");
        }
        retry::check(&self.retry_topics, &self.names)?;
        if self.buffer_messages == 0 || self.buffer_bytes == 0 {
            return wrong(
                "buffer_messages and buffer_bytes must be 1 at least: with 0 nothing would be taken",
            );
        }
        Ok(())
    }
}

const OPERATION: &str = "consume Kafka topics";
const DRAIN: Duration = Duration::from_secs(5);

/// What must have this value, and what another one would do. The offset to commit is decided by what is settled, not by what is
/// polled.
const FIXED: [(&str, &str, &str); 5] = [
    ("enable.auto.commit", "false", "would commit what is not settled"),
    ("auto.commit.enable", "false", "would commit what is not settled"),
    ("enable.auto.offset.store", "false", "would commit what is not settled"),
    ("isolation.level", "read_committed", "would deliver records of transactions that were aborted"),
    ("enable.partition.eof", "false", "would report the end of each partition as an error"),
];

/// What must not be set, and what to use instead.
const REFUSED: [(&str, &str); 2] = [
    (
        "auto.commit.interval.ms",
        "has no effect, since offsets are committed by what is settled; set commit_interval",
    ),
    ("offset.store.method", "has no effect, since offsets are committed to the group"),
];

/// What has this value unless it is set.
const DEFAULTS: [(&str, &str); 3] = [
    // The default of 1 s makes a consumer that was held back wait that long.
    ("fetch.queue.backoff.ms", "10"),
    // The default of 5 min makes a topic that was deleted and created again wait that long.
    ("topic.metadata.refresh.interval.ms", "10000"),
    ("partition.assignment.strategy", "cooperative-sticky"),
];

impl KafkaConfig {
    /// `topics` of the cluster of `brokers`, for the group `group`.
    pub fn new<B: Into<String>, N: Into<String>>(
        brokers: impl IntoIterator<Item = B>,
        topics: impl IntoIterator<Item = N>,
        group: impl Into<String>,
    ) -> Self {
        Self {
            brokers: brokers.into_iter().map(Into::into).collect(),
            group: group.into(),
            properties: BTreeMap::new(),
            allow_plaintext: false,
            password_file: None,
            topics: TopicConfig::new(topics),
        }
    }

    /// Checks that the values can be used and go together.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming what is wrong and the fix.
    pub fn check(&self) -> Result<(), Error> {
        if self.brokers.is_empty() {
            return Err(error::config(OPERATION, "give at least one broker, as host:port"));
        }
        for taken in ["bootstrap.servers", "metadata.broker.list", "group.id"] {
            if self.properties.contains_key(taken) {
                let what =
                    format!("the property {taken} has a setting of its own (brokers, group); remove it");
                return Err(error::config(OPERATION, what));
            }
        }
        self.check_login()?;
        self.password().map_or(Ok(()), |file| file.read().map(drop))?;
        settled(self.client(), &self.topics).map(drop)
    }

    /// Checks that a login, if there is one, is safe on its way.
    pub(crate) fn check_login(&self) -> Result<(), Error> {
        if self.allow_plaintext {
            return Ok(());
        }
        plaintext::check(OPERATION, &self.brokers, &self.properties)
    }

    /// The client's configuration with the group, as the user wrote it.
    #[doc(hidden)]
    pub fn client(&self) -> ClientConfig {
        let mut client = self.bare_client();
        client.set("group.id", &self.group);
        client
    }

    /// Without the group, with the password as it is now. A file that cannot be read is told of by [`check`](Self::check).
    pub(crate) fn bare_client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.brokers.join(","));
        for (name, value) in &self.properties {
            client.set(name, value);
        }
        if let Some(Ok(password)) = self.password().map(|file| file.read()) {
            client.set("sasl.password", password);
        }
        client
    }

    /// The file with the password, if there is one.
    pub(crate) fn password(&self) -> Option<Arc<PasswordFile>> {
        let username = self.properties.get("sasl.username").cloned().unwrap_or_default();
        self.password_file.clone().map(|path| Arc::new(PasswordFile { path, username }))
    }
}

/// A client's configuration with what the promises need.
pub struct Settled {
    pub client: ClientConfig,
    /// A group without an offset starts at the end.
    pub from_end: bool,
}

/// `client` with what the promises need, or what contradicts them.
pub fn settled(mut client: ClientConfig, topics: &TopicConfig) -> Result<Settled, Error> {
    topics.check()?;
    let wrong = |what: String| Err(error::config(OPERATION, what));
    if client.get("group.id").is_none_or(str::is_empty) {
        return wrong("a consumer group is needed to commit offsets; set the group (group.id)".to_owned());
    }
    for (name, value, harm) in FIXED {
        if let Some(set) = client.get(name)
            && set != value
        {
            return wrong(format!(
                "the property {name} has a value that {harm}; set it to {value} or remove it"
            ));
        }
        if name != "auto.commit.enable" {
            client.set(name, value);
        }
    }
    for (name, why) in REFUSED {
        if client.get(name).is_some() {
            return wrong(format!("the property {name} {why}; remove it"));
        }
    }
    if let Some(protocol) = client.get("group.protocol")
        && protocol != "classic"
    {
        return wrong(
            "the property group.protocol selects a protocol that is not supported: partitions are given up when their handlers are \
             done, which the classic protocol waits for; set it to classic or remove it"
                .to_owned(),
        );
    }
    fit_session(&mut client);
    for (name, value) in DEFAULTS {
        if client.get(name).is_none() {
            client.set(name, value);
        }
    }
    if client.get("heartbeat.interval.ms").is_none() {
        let session = client.get("session.timeout.ms").and_then(|value| value.parse().ok());
        client.set("heartbeat.interval.ms", heartbeat_interval(session).to_string());
    }
    // What is out of range is never skipped: librdkafka's `latest` would go to the end of a topic that was recreated. Where a
    // group without an offset starts is decided at the assignment.
    let from_end = matches!(client.get("auto.offset.reset"), Some("latest" | "largest" | "end"));
    if from_end || client.get("auto.offset.reset").is_none() {
        client.set("auto.offset.reset", "earliest");
    }
    log::level(&mut client);
    Ok(Settled { client, from_end })
}

/// The heartbeat interval in milliseconds for a session timeout that is given, if one is. A member learns with its heartbeat that
/// the group rebalances, and a cooperative rebalance has two rounds: with librdkafka's 3 s a joining member waits 6 s for its
/// partitions. Kafka's documentation wants at most a third of the session timeout.
fn heartbeat_interval(session_timeout: Option<u64>) -> u64 {
    session_timeout.map_or(1_000, |session| (session / 3).clamp(1, 1_000))
}

/// librdkafka's defaults, in milliseconds.
const SESSION: (&str, u64) = ("session.timeout.ms", 45_000);
const POLL: (&str, u64) = ("max.poll.interval.ms", 300_000);

/// librdkafka takes no poll interval that is shorter than the session: of the two, one that is not set follows the other.
fn fit_session(client: &mut ClientConfig) {
    let set = |(name, _)| client.get(name).map(str::to_owned);
    let (session, poll) = (set(SESSION), set(POLL));
    let number = |text: &str| text.parse::<u64>().ok();
    match (session, poll) {
        (None, Some(poll)) if number(&poll).is_some_and(|poll| poll < SESSION.1) => {
            client.set(SESSION.0, poll);
        }
        (Some(session), None) if number(&session).is_some_and(|session| session > POLL.1) => {
            client.set(POLL.0, session);
        }
        // Both are set, or the defaults do; the client says what is wrong with what is no number.
        _ => {}
    }
}

impl fmt::Debug for KafkaConfig {
    /// The names of properties without their values: passwords are among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("group", &self.group)
            .field("properties", &self.properties.keys())
            .field("allow_plaintext", &self.allow_plaintext)
            .field("password_file", &self.password_file)
            .field("topics", &self.topics)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> KafkaConfig {
        KafkaConfig::new(["h:9092"], ["orders"], "billing")
    }

    #[test]
    fn values_that_cannot_be_used_are_refused() {
        assert!(config().check().is_ok());
        for spoil in [
            (|config| config.brokers.clear()) as fn(&mut KafkaConfig),
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
            |config| drop(config.properties.insert("group.id".into(), "other".into())),
            |config| drop(config.properties.insert("enable.auto.commit".into(), "true".into())),
            |config| drop(config.properties.insert("enable.auto.offset.store".into(), "true".into())),
            |config| drop(config.properties.insert("auto.commit.enable".into(), "true".into())),
            |config| drop(config.properties.insert("auto.commit.interval.ms".into(), "100".into())),
            |config| drop(config.properties.insert("isolation.level".into(), "read_uncommitted".into())),
            |config| drop(config.properties.insert("enable.partition.eof".into(), "true".into())),
            |config| drop(config.properties.insert("group.protocol".into(), "consumer".into())),
        ] {
            let mut config = config();
            spoil(&mut config);
            assert!(config.check().is_err(), "{config:?}");
        }
    }

    #[test]
    fn heartbeats_are_frequent_enough_for_a_quick_join_and_for_a_short_session() {
        let of = |config: &KafkaConfig| {
            let settled = settled(config.client(), &config.topics).expect("a configuration");
            settled.client.get("heartbeat.interval.ms").map(str::to_owned)
        };
        let mut config = config();
        assert_eq!(of(&config).as_deref(), Some("1000"));
        config.properties.insert("session.timeout.ms".into(), "1500".into());
        assert_eq!(of(&config).as_deref(), Some("500"));
        config.properties.insert("heartbeat.interval.ms".into(), "300".into());
        assert_eq!(of(&config).as_deref(), Some("300"));
    }

    #[test]
    fn a_shorter_session_or_poll_interval_never_makes_the_drain_invalid() {
        let mut config = config();
        let drain = |config: &KafkaConfig| config.topics.clone().fitted(&config.client()).drain();
        assert_eq!(drain(&config), Duration::from_secs(5));
        config.properties.insert("session.timeout.ms".into(), "1000".into());
        config.properties.insert("max.poll.interval.ms".into(), "3000".into());
        assert!(config.check().is_ok());
        assert_eq!(drain(&config), Duration::from_millis(1500));
    }

    #[test]
    fn of_session_and_poll_interval_the_one_that_is_not_set_follows_the_other() {
        for (name, value) in [
            ("max.poll.interval.ms", "10000"),
            ("max.poll.interval.ms", "45000"),
            ("session.timeout.ms", "1800000"),
            ("session.timeout.ms", "6000"),
        ] {
            let mut config = config();
            config.properties.insert(name.into(), value.into());
            let client = settled(config.client(), &config.topics).unwrap().client;
            assert_eq!(client.get(name), Some(value));
            let made = client.create::<rdkafka::consumer::BaseConsumer>();
            assert!(made.is_ok(), "{name} = {value}: {:?}", made.err());
        }
    }

    #[test]
    fn a_property_that_is_set_is_kept_and_its_value_is_not_shown() {
        let mut config = config();
        config.properties.insert("sasl.password".into(), "canary".into());
        config.properties.insert("auto.offset.reset".into(), "latest".into());
        config.properties.insert("fetch.wait.max.ms".into(), "7".into());
        let Settled { client, from_end } = settled(config.client(), &config.topics).unwrap();
        // The client itself never skips to the end.
        assert_eq!((from_end, client.get("auto.offset.reset")), (true, Some("earliest")));
        assert_eq!(client.get("isolation.level"), Some("read_committed"));
        assert_eq!(client.get("fetch.wait.max.ms"), Some("7"));
        assert!(!format!("{config:?}").contains("canary"));
    }
}
