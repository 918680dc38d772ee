//! The client properties that the guarantees of a consumer require: [`ConsumerClientConfig`].

use onceward::Error;
use rdkafka::ClientConfig;

use crate::client::log;
use crate::error;

const OPERATION: &str = "consume Kafka topics";

/// A property of librdkafka whose other values contradict the guarantees.
pub(crate) struct PropertyRule {
    name: &'static str,
    /// The only valid value; `None` if the property must not be set.
    pub(crate) required: Option<&'static str>,
    /// The effect of any other value.
    pub(crate) problem: &'static str,
}

impl PropertyRule {
    const fn new(name: &'static str, required: Option<&'static str>, problem: &'static str) -> Self {
        Self { name, required, problem }
    }

    pub(crate) fn is_broken_by(&self, name: &str, value: &str) -> bool {
        self.name == name && self.required != Some(value)
    }
}

const COMMITS_UNSETTLED: &str = "would commit unsettled records";

/// The properties with a required value, or none. Offsets are committed by settlements, not by polling.
pub(crate) const PROPERTY_RULES: [PropertyRule; 8] = [
    PropertyRule::new("enable.auto.commit", Some("false"), COMMITS_UNSETTLED),
    PropertyRule::new("auto.commit.enable", Some("false"), COMMITS_UNSETTLED),
    PropertyRule::new("enable.auto.offset.store", Some("false"), COMMITS_UNSETTLED),
    PropertyRule::new(
        "isolation.level",
        Some("read_committed"),
        "would deliver records of aborted transactions",
    ),
    PropertyRule::new(
        "enable.partition.eof",
        Some("false"),
        "would report the end of each partition as an error",
    ),
    PropertyRule::new(
        "group.protocol",
        Some("classic"),
        "selects a protocol in which the broker, not the member, decides how long a revoked partition may drain",
    ),
    PropertyRule::new(
        "auto.commit.interval.ms",
        None,
        "has no effect, since settlements decide the committed offsets",
    ),
    PropertyRule::new("offset.store.method", None, "has no effect, since offsets are committed to the group"),
];

/// The properties that are set to their required value. The others have it by default, or are aliases.
const SET: [(&str, &str); 4] = [
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("isolation.level", "read_committed"),
    ("enable.partition.eof", "false"),
];

/// Default values that differ from the client's.
const DEFAULTS: [(&str, &str); 3] = [
    // The client's default of 1 s delays a consumer that was held back.
    ("fetch.queue.backoff.ms", "10"),
    // The client's default of 5 min delays the detection of a recreated topic.
    ("topic.metadata.refresh.interval.ms", "10000"),
    ("partition.assignment.strategy", "cooperative-sticky"),
];

/// The configuration of a consumer's client.
pub struct ConsumerClientConfig {
    /// The client's configuration.
    pub client: ClientConfig,
    /// A group without an offset starts at the end of the log.
    pub from_end: bool,
}

impl ConsumerClientConfig {
    /// Adds the properties that the guarantees require to `client`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) for a property that contradicts them, with the fix.
    pub fn build(mut client: ClientConfig) -> Result<Self, Error> {
        reject_contradictions(&client)?;
        for (name, value) in SET {
            client.set(name, value);
        }
        align_session_and_poll_interval(&mut client);
        for (name, value) in DEFAULTS {
            if client.get(name).is_none() {
                client.set(name, value);
            }
        }
        if client.get("heartbeat.interval.ms").is_none() {
            let session = client.get("session.timeout.ms").and_then(|value| value.parse().ok());
            client.set("heartbeat.interval.ms", heartbeat_interval(session).to_string());
        }
        // The client never skips an offset that is out of range: with `latest` it would skip a recreated topic. The start of a
        // group without an offset is decided at the assignment.
        let from_end = matches!(client.get("auto.offset.reset"), Some("latest" | "largest" | "end"));
        if from_end || client.get("auto.offset.reset").is_none() {
            client.set("auto.offset.reset", "earliest");
        }
        log::enable_warnings(&mut client);
        Ok(Self { client, from_end })
    }
}

fn reject_contradictions(client: &ClientConfig) -> Result<(), Error> {
    let invalid = |what: String| Err(error::config_error(OPERATION, what));
    if client.get("group.id").is_none_or(str::is_empty) {
        return invalid("committing offsets requires a consumer group; set the group (group.id)".to_owned());
    }
    for rule in &PROPERTY_RULES {
        let name = rule.name;
        if client.get(name).is_some_and(|value| rule.is_broken_by(name, value)) {
            return invalid(match rule.required {
                Some(required) => {
                    let problem = rule.problem;
                    format!("the value of the property {name} {problem}; set it to {required} or remove it")
                }
                None => format!("the property {name} {}; remove it", rule.problem),
            });
        }
    }
    Ok(())
}

/// Returns the heartbeat interval in milliseconds for a configured session timeout. A member learns of a rebalance with its
/// heartbeat, and a cooperative rebalance has two rounds: with the client's default of 3 s a joining member waits 6 s for its
/// partitions. Kafka's documentation requires at most a third of the session timeout.
fn heartbeat_interval(session_timeout: Option<u64>) -> u64 {
    session_timeout.map_or(1_000, |session| (session / 3).clamp(1, 1_000))
}

/// The client's defaults, in milliseconds.
const SESSION: (&str, u64) = ("session.timeout.ms", 45_000);
const POLL: (&str, u64) = ("max.poll.interval.ms", 300_000);

/// Derives the session timeout or the poll interval from the other one, if only one is set: the client rejects a poll interval
/// shorter than the session.
fn align_session_and_poll_interval(client: &mut ClientConfig) {
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
        // Both are set, or neither; the client rejects a value that is no number.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(properties: &[(&str, &str)]) -> Result<ConsumerClientConfig, Error> {
        let mut client = ClientConfig::new();
        client.set("group.id", "billing");
        for (name, value) in properties {
            client.set(*name, *value);
        }
        ConsumerClientConfig::build(client)
    }

    #[test]
    fn properties_that_contradict_the_guarantees_are_rejected() {
        assert!(build(&[]).is_ok() && build(&[("group.id", "")]).is_err());
        for property in [
            ("enable.auto.commit", "true"),
            ("enable.auto.offset.store", "true"),
            ("auto.commit.enable", "true"),
            ("auto.commit.interval.ms", "100"),
            ("isolation.level", "read_uncommitted"),
            ("enable.partition.eof", "true"),
            ("group.protocol", "consumer"),
        ] {
            assert!(build(&[property]).is_err(), "{property:?}");
        }
    }

    #[test]
    fn heartbeats_are_frequent_enough_for_a_quick_join_and_for_a_short_session() {
        let interval = |properties: &[(&str, &str)]| {
            build(properties).unwrap().client.get("heartbeat.interval.ms").map(str::to_owned)
        };
        let session = ("session.timeout.ms", "1500");
        assert_eq!(interval(&[]).as_deref(), Some("1000"));
        assert_eq!(interval(&[session]).as_deref(), Some("500"));
        assert_eq!(interval(&[session, ("heartbeat.interval.ms", "300")]).as_deref(), Some("300"));
    }

    #[test]
    fn of_session_and_poll_interval_the_one_that_is_not_set_follows_the_other() {
        for (name, value) in [
            ("max.poll.interval.ms", "10000"),
            ("max.poll.interval.ms", "45000"),
            ("session.timeout.ms", "1800000"),
            ("session.timeout.ms", "6000"),
        ] {
            let client = build(&[(name, value)]).unwrap().client;
            assert_eq!(client.get(name), Some(value));
            let created = client.create::<rdkafka::consumer::BaseConsumer>();
            assert!(created.is_ok(), "{name} = {value}: {:?}", created.err());
        }
    }

    #[test]
    fn a_configured_property_is_kept_and_the_client_never_skips_to_the_end() {
        let built = build(&[("auto.offset.reset", "latest"), ("fetch.wait.max.ms", "7")]).unwrap();
        assert_eq!((built.from_end, built.client.get("auto.offset.reset")), (true, Some("earliest")));
        assert_eq!(built.client.get("isolation.level"), Some("read_committed"));
        assert_eq!(built.client.get("fetch.wait.max.ms"), Some("7"));
    }
}
