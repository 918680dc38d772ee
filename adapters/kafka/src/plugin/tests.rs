//! Tests: the options of a table reach the client.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use onceward::{HeaderTrust, OwnHeaders, PipelineConfig};
use onceward_plugin::{Context, HandlerFacts};
use serde_json::{Value, json};

use super::Source;
use crate::{KafkaConfig, RetryTopic};

fn options(more: Value) -> KafkaConfig {
    let mut table = json!({ "brokers": ["h:1", "h:2"], "topics": ["t"], "group": "g" });
    let (Value::Object(all), Value::Object(more)) = (&mut table, more) else { unreachable!() };
    all.extend(more);
    let source: Source = serde_json::from_value(table).unwrap();
    let pipeline = PipelineConfig { drain_timeout: Duration::from_secs(7), ..PipelineConfig::default() };
    let context = Context {
        table: "source.kafka",
        directory: Path::new("."),
        is_written: &|_| false,
        pipeline: &pipeline,
        key_sources: &[],
        dead_letter: None,
        header_trust: HeaderTrust::Trusted,
        handler: HandlerFacts {
            table: "handler.stdout",
            timeout: Duration::from_secs(30),
            is_transactional: false,
        },
    };
    source.options(&context, OwnHeaders::trusted()).unwrap()
}

#[test]
fn what_is_configured_reaches_the_client() {
    let options = options(json!({
        "retry_topics": { "r.1m": "1m", "r.5s": "5s" },
        "properties": { "client": { "id": "x" } },
    }));
    assert_eq!(options.connection.brokers, ["h:1", "h:2"]);
    assert_eq!(options.topics.drain_timeout, Some(Duration::from_secs(7)));
    let retry = [("r.1m", 60), ("r.5s", 5)];
    let retry = retry.map(|(name, secs)| RetryTopic::new(name, Duration::from_secs(secs)));
    assert_eq!(options.topics.retry_topics, retry);
    assert_eq!(options.topics.own_headers.trust(), HeaderTrust::Trusted);
    let properties = BTreeMap::from([("client.id".to_owned(), "x".to_owned())]);
    assert_eq!(options.connection.properties, properties);
}

#[test]
fn a_password_goes_over_tls_unless_the_properties_say_otherwise() {
    let get = |options: &KafkaConfig, name: &str| {
        options.connection.properties.get(name).cloned().unwrap_or_default()
    };
    let secure = options(json!({ "username": "u", "password": "p" }));
    assert_eq!(get(&secure, "security.protocol"), "sasl_ssl");
    assert_eq!((get(&secure, "sasl.username"), get(&secure, "sasl.password")), ("u".into(), "p".into()));
    let plain = options(json!({
        "username": "u",
        "password": "p",
        "allow_plaintext": true,
        "properties": { "security.protocol": "sasl_plaintext", "sasl.mechanism": "SCRAM-SHA-512" },
    }));
    assert_eq!(get(&plain, "security.protocol"), "sasl_plaintext");
    assert_eq!(get(&plain, "sasl.mechanisms"), "");
}

#[test]
fn table_and_struct_document_the_delays_of_retry_topics() {
    let [shortest, longest] = [crate::RetryTopic::DELAY.start(), crate::RetryTopic::DELAY.end()]
        .map(|delay| onceward_plugin::value::HumanDuration::new(*delay));
    onceward_plugin::documentation::assert_documented::<super::Source>(
        include_str!("../retry/topic.rs"),
        &[onceward_plugin::documentation::SharedOption {
            option: "retry_topics",
            field: "delay",
            range: Some(format!("from {shortest} to {longest}")),
            default: None,
        }],
    );
}
