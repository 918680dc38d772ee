//! Checks what a client needs of a broker, whichever table it stands in.

use super::{Checked, credentials, text, texts, url};
use crate::config::plaintext::normalised;
use crate::config::{Address, Config, KafkaCluster, Properties, RabbitmqBroker, SqsPlace};

/// Properties that are not for passing through, with what to use instead.
const REFUSED_PROPERTIES: [(&str, &str); 7] = [
    ("auto.commit.enable", AUTOMATIC),
    ("enable.auto.commit", AUTOMATIC),
    ("enable.auto.offset.store", AUTOMATIC),
    ("bootstrap.servers", "remove it and write the brokers in `brokers`"),
    ("metadata.broker.list", "remove it and write the brokers in `brokers`"),
    ("group.id", "remove it and write the consumer group in `group`"),
    ("transactional.id", "remove it, since it is derived from the scope"),
];
const NO_CODE: &str = "remove it: what is to be loaded into a client is linked or preloaded by whoever starts the program, not named here";
const AUTOMATIC: &str = "remove it, since offsets are committed only after an effect is complete";

/// Properties that have one value that works, with why, whichever table they stand in. An empty value: none works.
const FIXED_PROPERTIES: [(&str, &str, &str); 5] = [
    (
        "group.protocol",
        "classic",
        "selects a protocol in which the broker, not the member, decides how long a revoked partition may drain",
    ),
    ("isolation.level", "read_committed", "would deliver records of transactions that were aborted"),
    ("enable.partition.eof", "false", "would report the end of each partition as an error"),
    ("auto.commit.interval.ms", "", "has no effect, since offsets are committed by what is settled"),
    ("offset.store.method", "", "has no effect, since offsets are committed to the group"),
];

/// `table` is where the broker stands, such as `source.rabbitmq`.
pub(super) fn rabbitmq(config: &Config, table: &str, broker: RabbitmqBroker<'_>) -> Checked {
    url(config, &format!("{table}.url"), broker.url, &["amqp", "amqps"])?;
    if broker.ca_file.is_some() && broker.url.has_scheme(&["amqp"]) {
        return Err(config.refuse(
            &format!("{table}.ca_file"),
            format!("is for TLS, and {table}.url is without it"),
            "write amqps:// in the URL, or remove ca_file",
        ));
    }
    credentials(config, table, broker.credentials, Some(broker.url))
}

pub(super) fn kafka(config: &Config, table: &str, cluster: KafkaCluster<'_>) -> Checked {
    texts(config, &format!("{table}.brokers"), cluster.brokers, Address::is_empty)?;
    credentials(config, table, cluster.credentials, None)?;
    properties(config, &format!("{table}.properties"), cluster.properties)
}

pub(super) fn sqs(config: &Config, table: &str, place: SqsPlace<'_>) -> Checked {
    if let Some(region) = place.region {
        text(config, &format!("{table}.region"), region)?;
    }
    match place.endpoint {
        Some(endpoint) => url(config, &format!("{table}.endpoint"), endpoint, &["http", "https"]),
        None => Ok(()),
    }
}

/// Refuses what would break the acknowledgement rule, what has a key of its own, what the adapter refuses, and what has librdkafka
/// load or run code: who may write a configuration, or has one checked, may not run programs by that.
fn properties(config: &Config, table: &str, properties: &Properties) -> Checked {
    for (name, value) in properties.expose() {
        let plain = normalised(name);
        let key = || property_key(config, table, name);
        if let Some((_, fix)) = REFUSED_PROPERTIES.iter().find(|(refused, _)| *refused == plain) {
            return Err(config.refuse(&key(), "is not for passing through", *fix));
        }
        if let Some((_, only, why)) = FIXED_PROPERTIES.iter().find(|(fixed, ..)| *fixed == plain)
            && value != *only
        {
            let fix = match *only {
                "" => "remove it".to_owned(),
                only => format!("set it to {only}, or remove it"),
            };
            return Err(config.refuse(&key(), *why, fix));
        }
        if runs_code(&plain) {
            return Err(config.refuse(&key(), "loads or runs code, or takes an address in memory", NO_CODE));
        }
        // librdkafka puts these into the command line of `kinit`, which a shell runs.
        if plain.starts_with("sasl.kerberos.") && !value.chars().all(is_plain_in_a_shell) {
            return Err(config.refuse(
                &key(),
                "holds a character that a shell could take for more than a name",
                "write letters, digits and `. _ / @ - :` only",
            ));
        }
    }
    Ok(())
}

/// True for properties that load libraries or run commands, and for those that only a C program could set.
fn runs_code(name: &str) -> bool {
    // However it is written: with dots, underscores or dashes.
    let name = name.replace(['_', '-'], ".");
    let is_about_code = ["plugin.", "ssl.engine", "ssl.provider", "sasl.kerberos.kinit"];
    is_about_code.iter().any(|start| name.starts_with(start))
        || name.ends_with(".cb")
        || matches!(
            &*name,
            "opaque"
                | "interceptors"
                | "default.topic.conf"
                | "msg.order.cmp"
                | "ssl.key"
                | "ssl.certificate"
                | "ssl.ca"
        )
}

fn is_plain_in_a_shell(character: char) -> bool {
    character.is_ascii_alphanumeric() || "._/@-:".contains(character)
}

/// A property's key as it is written: in quotes, or as nested tables.
pub(super) fn property_key(config: &Config, table: &str, name: &str) -> String {
    let nested = format!("{table}.{name}");
    if config.origin.is_written(&nested) { nested } else { format!("{table}.{name:?}") }
}
