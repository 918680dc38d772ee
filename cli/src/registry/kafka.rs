//! Maps `[source.kafka]`, `[handler.publish.kafka]` and `[outbox.kafka]` to their adapter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use onceward::store::{Advice, AdviceLevel};
use onceward::{Capabilities, Consumer, DeadLetters, Error, ErrorKind, Publisher};
use onceward_kafka::{KafkaConfig, KafkaConnection, KafkaConsumer, KafkaPublisher, RetryTopic, TopicStatus};

use super::credentials::Login;
use super::own_headers::own_headers;
use super::settings::pipeline_config;
use crate::config::{Address, Config, KafkaCluster, KafkaSource, KafkaTarget, OutboxKafka, Properties};

/// About as many bytes as the headers of a dead letter have.
const LETTER_HEADERS: u64 = 2048;
/// The longest drain of a partition that is revoked: until it is over nothing more is fetched of the others.
const LONGEST_DRAIN: Duration = Duration::from_secs(10);

pub(super) async fn open(config: &Config, source: &KafkaSource) -> Result<KafkaConsumer, Error> {
    KafkaConsumer::open(options(config, source)?).await
}

/// The dead letters of a Kafka source, in a topic that is there.
pub(super) async fn dead_letters(
    config: &Config,
    source: &KafkaSource,
    to: &str,
) -> Result<DeadLetters, Error> {
    // The first letter would be held for ever by a topic that is missing.
    writable(&options(config, source)?.connection, to).await?;
    Ok(DeadLetters::new(publisher(config, source)?, to))
}

/// Takes letters from the topic `place`, in a group of its own, and gives them back to the source's topics.
pub(super) async fn letters(
    config: &Config,
    source: &KafkaSource,
    place: &str,
) -> Result<(Box<dyn Consumer>, Arc<dyn Publisher>, Vec<String>), Error> {
    let mut letters = options(config, source)?;
    letters.group.push_str(".redrive");
    letters.topics.names = vec![place.to_owned()];
    letters.topics.retry_topics = Vec::new();
    let from = KafkaConsumer::open(letters).await?;
    Ok((Box::new(from), publisher(config, source)?, source.topics.clone()))
}

/// A publisher to the source's own brokers.
pub(super) fn publisher(config: &Config, source: &KafkaSource) -> Result<Arc<dyn Publisher>, Error> {
    Ok(Arc::new(KafkaPublisher::open(options(config, source)?.connection)?))
}

/// The publisher of `[handler.publish.kafka]` and its topic, which is there.
pub(super) async fn target(
    config: &Config,
    target: &KafkaTarget,
) -> Result<(Arc<dyn Publisher>, String), Error> {
    let mut asked = asked(config, "handler.publish.kafka", target.cluster())?;
    // A topic that is missing would cost every message its attempts.
    writable(&asked, &target.topic).await?;
    let limit = super::publisher::confirm_limit(config, KafkaPublisher::CONFIRM_TIMEOUT);
    asked.properties.entry("message.timeout.ms".to_owned()).or_insert_with(|| limit.as_millis().to_string());
    Ok((Arc::new(KafkaPublisher::open(asked)?), target.topic.clone()))
}

/// The publisher of `[outbox.kafka]`. Each row names its topic, so that none can be looked at.
pub(super) fn outbox(config: &Config, target: &OutboxKafka) -> Result<Arc<dyn Publisher>, Error> {
    let asked = asked(config, "outbox.kafka", target.cluster())?;
    Ok(Arc::new(KafkaPublisher::open(asked)?))
}

/// How many brokers the cluster of `[outbox.kafka]` has.
pub(super) async fn outbox_brokers(config: &Config, target: &OutboxKafka) -> Result<usize, Error> {
    asked(config, "outbox.kafka", target.cluster())?.count_brokers().await
}

/// The connection to the cluster in `table`.
fn asked(config: &Config, table: &str, cluster: KafkaCluster<'_>) -> Result<KafkaConnection, Error> {
    let brokers = cluster.brokers.iter().map(Address::expose);
    let mut asked = KafkaConnection::new(brokers);
    asked.allow_plaintext = cluster.allow_plaintext;
    asked.password_file = cluster.credentials.password_file.map(|file| config.resolve(file));
    asked.properties = properties(cluster.properties, Login::read(config, table, cluster.credentials)?);
    Ok(asked)
}

/// What is known of a topic that is to be written to.
///
/// # Errors
/// It is not there, or may not be written to.
pub(super) async fn writable(connection: &KafkaConnection, topic: &str) -> Result<TopicStatus, Error> {
    let facts = connection.inspect_topic(topic).await?;
    if facts.writable {
        return Ok(facts);
    }
    let what = "this user may not write to it; grant Write";
    Err(Error::new(ErrorKind::Denied, format!("inspect topic {topic}"), what))
}

/// The cluster, topics and group of a Kafka source.
pub(super) fn options(config: &Config, source: &KafkaSource) -> Result<KafkaConfig, Error> {
    let brokers = source.brokers.iter().map(Address::expose);
    let mut options = KafkaConfig::new(brokers, source.topics.iter().map(String::as_str), &source.group);
    options.topics.drain_timeout = Some(config.pipeline.drain_timeout.get().min(LONGEST_DRAIN));
    let retry_topics = source.retry_topics.iter();
    options.topics.retry_topics =
        retry_topics.map(|(name, delay)| RetryTopic::new(name, delay.get())).collect();
    options.topics.own_headers = own_headers(config)?;
    let login = Login::read(config, "source.kafka", source.credentials())?;
    options.connection.allow_plaintext = source.allow_plaintext;
    options.connection.password_file = source.credentials().password_file.map(|file| config.resolve(file));
    options.connection.properties = properties(&source.properties, login);
    Ok(options)
}

/// The client's properties, with the credentials.
fn properties(given: &Properties, login: Login) -> BTreeMap<String, String> {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let mut properties: BTreeMap<_, _> = given.expose().map(owned).collect();
    if let Some(username) = login.username {
        properties.insert("sasl.username".to_owned(), username);
    }
    if let Some(password) = login.password {
        properties.insert("sasl.password".to_owned(), password.expose().to_owned());
        // What is safe with a password, unless the properties say otherwise.
        properties.entry("security.protocol".to_owned()).or_insert_with(|| "sasl_ssl".to_owned());
        if !properties.contains_key("sasl.mechanism") {
            properties.entry("sasl.mechanisms".to_owned()).or_insert_with(|| "PLAIN".to_owned());
        }
    }
    properties
}

/// What is unwise, or will not work, with topics and group.
pub(super) async fn advice(config: &Config, source: &KafkaSource) -> Result<Vec<Advice>, Error> {
    let options = options(config, source)?;
    let facts = options.inspect_group().await?;
    let mut advice = Vec::new();
    let mut add = |level, text: String| advice.push(Advice::new(level, text));
    let (group, state) = (&source.group, facts.group_state.as_str());
    add(
        AdviceLevel::Ok,
        format!("{} partitions; group {group} is {state} with {} members", facts.partitions, facts.members),
    );
    if !facts.unreadable.is_empty() {
        let topics = facts.unreadable.join(", ");
        add(AdviceLevel::Error, format!("this user may not read {topics}; grant Read on topic and group"));
    }
    if facts.retention.is_none() {
        let text = "how long records are kept has no limit, or is not told (that needs DescribeConfigs on the topics): what \
                    is delivered again after the store's ttl is handled again";
        add(AdviceLevel::Warning, text.to_owned());
    }
    if let Some(used) = facts.group_protocol.filter(|_| facts.members > 0) {
        let ours = options.assignment_strategy()?;
        if !ours.split(',').any(|own| own.trim() == used) {
            let text = format!(
                "the members of group {group} use partition.assignment.strategy {used:?} and this configuration {ours:?}, so that it \
                 cannot join; set the same in [source.kafka.properties], or stop the other members first"
            );
            add(AdviceLevel::Error, text);
        }
    }
    let mut fits = |topic: &str, facts: TopicStatus, source: Option<u64>, what: &str| {
        if let (Some(largest), Some(source)) = (facts.max_message_bytes, source)
            && largest < source
        {
            let text = format!(
                "{topic} takes {largest} bytes at most (max.message.bytes) and the source's topics {source}: {what}; raise it"
            );
            advice.push(Advice::new(AdviceLevel::Warning, text));
        }
    };
    let source_bytes = facts.max_message_bytes;
    for topic in &options.topics.retry_topics {
        let found = writable(&options.connection, &topic.name).await?;
        fits(&topic.name, found, source_bytes, "larger messages wait for their retries in this process");
    }
    if let Some(dead_letter) = &config.dead_letter {
        let to = dead_letter.to.expose();
        // A letter has headers of ours besides.
        let with_headers = source_bytes.map(|bytes| bytes.saturating_add(LETTER_HEADERS));
        let found = writable(&options.connection, to).await?;
        fits(to, found, with_headers, "the dead letters of the largest messages do not fit");
    }
    for topic in &options.topics.retry_topics {
        advice.push(Advice::new(AdviceLevel::Ok, format!("retries wait in {}", topic.name)));
    }
    let mut capabilities = Capabilities::default();
    (capabilities.ordered, capabilities.retention) = (true, facts.retention);
    advice.extend(onceward::pipeline::start_check::advise(&pipeline_config(config, false), &capabilities));
    Ok(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str) -> KafkaConfig {
        let text = format!(
            "scope = 'a'\n[source.kafka]\nbrokers = ['h:1', 'h:2']\ntopics = ['t']\ngroup = 'g'\n{more}\n[store.memory]\n\
             [handler.stdout]\n[dead_letter]\nto = 'd'\n[pipeline]\nordering = 'none'\ndrain_timeout = '7s'\n\
             [key]\nsecret = '0123456789abcdef'\n"
        );
        let config = Config::parse(&text, &|_| None).unwrap();
        let crate::config::Source::Kafka(source) = &config.source else { panic!("{config:?}") };
        options(&config, source).unwrap()
    }

    #[test]
    fn what_is_configured_reaches_the_client() {
        let options = read("retry_topics = { 'r.1m' = '1m', 'r.5s' = '5s' }\nproperties.client.id = 'x'");
        assert_eq!(options.connection.brokers, ["h:1", "h:2"]);
        assert_eq!(options.topics.drain_timeout, Some(Duration::from_secs(7)));
        let retry = [("r.1m", 60), ("r.5s", 5)];
        let retry = retry.map(|(name, secs)| RetryTopic::new(name, Duration::from_secs(secs)));
        assert_eq!(options.topics.retry_topics, retry);
        assert_eq!(options.topics.own_headers.trust(), onceward::HeaderTrust::Authenticated);
        assert_eq!(options.connection.properties, BTreeMap::from([("client.id".to_owned(), "x".to_owned())]));
    }

    #[test]
    fn a_password_goes_over_tls_unless_the_properties_say_otherwise() {
        let get = |options: &KafkaConfig, name: &str| {
            options.connection.properties.get(name).cloned().unwrap_or_default()
        };
        let options = read("username = 'u'\npassword = 'p'");
        assert_eq!(get(&options, "security.protocol"), "sasl_ssl");
        assert_eq!(
            (get(&options, "sasl.username"), get(&options, "sasl.password")),
            ("u".into(), "p".into())
        );
        let options = read(
            "username = 'u'\npassword = 'p'\nallow_plaintext = true\n[source.kafka.properties]\nsecurity.protocol = 'sasl_plaintext'\n\
             sasl.mechanism = 'SCRAM-SHA-512'",
        );
        assert_eq!(get(&options, "security.protocol"), "sasl_plaintext");
        assert_eq!(get(&options, "sasl.mechanisms"), "");
    }
}
