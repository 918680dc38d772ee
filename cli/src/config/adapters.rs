//! Which adapters this build has, and how to get the others.

use super::{Config, ConfigError, OutboxTarget};

/// One table of the configuration and the code behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adapter {
    /// The table, such as `store.sqlite`.
    pub table: &'static str,
    /// The cargo feature that brings it; none where it is always there.
    pub feature: Option<&'static str>,
    /// True where this build has it.
    pub compiled_in: bool,
}

const fn always(table: &'static str) -> Adapter {
    Adapter { table, feature: None, compiled_in: true }
}

const fn with(table: &'static str, feature: &'static str, compiled_in: bool) -> Adapter {
    Adapter { table, feature: Some(feature), compiled_in }
}

/// Every adapter a configuration can name, in the order in which `--version` lists them.
pub const ADAPTERS: [Adapter; 19] = [
    with("source.rabbitmq", "rabbitmq", cfg!(feature = "rabbitmq")),
    with("source.kafka", "kafka", cfg!(feature = "kafka")),
    with("source.sqs", "sqs", cfg!(feature = "sqs")),
    always("source.file"),
    with("store.redis", "redis", cfg!(feature = "redis")),
    with("store.postgres", "postgres", cfg!(feature = "postgres")),
    with("store.sqlite", "sqlite", cfg!(feature = "sqlite")),
    always("store.memory"),
    with("handler.http", "http", cfg!(feature = "http")),
    always("handler.exec"),
    always("handler.worker"),
    // A statement runs in its store, so it comes with any store that has transactions.
    with("handler.sql", "sqlite", cfg!(any(feature = "sqlite", feature = "postgres"))),
    with("handler.publish.rabbitmq", "rabbitmq", cfg!(feature = "rabbitmq")),
    with("handler.publish.kafka", "kafka", cfg!(feature = "kafka")),
    with("handler.publish.sqs", "sqs", cfg!(feature = "sqs")),
    always("handler.stdout"),
    with("outbox.rabbitmq", "rabbitmq", cfg!(feature = "rabbitmq")),
    with("outbox.kafka", "kafka", cfg!(feature = "kafka")),
    with("outbox.sqs", "sqs", cfg!(feature = "sqs")),
];

/// The first part of the configuration that this build lacks, as an error that says how to get it.
pub fn missing_feature(config: &Config) -> Option<ConfigError> {
    missing_adapter(config, &ADAPTERS).or_else(|| missing_telemetry(config))
}

fn missing_telemetry(config: &Config) -> Option<ConfigError> {
    if config.telemetry.otlp.is_some() {
        let fix = "remove it, and scrape /metrics (telemetry.listen) meanwhile";
        return Some(config.refuse("telemetry.otlp", "no build of onceward has an OTLP exporter yet", fix));
    }
    if config.telemetry.listen.is_some() && !cfg!(feature = "telemetry") {
        let fix = "remove it, or install one that has it: cargo install onceward-cli --features telemetry";
        return Some(config.refuse("telemetry.listen", "this build of onceward has no listener", fix));
    }
    None
}

fn missing_adapter(config: &Config, adapters: &[Adapter]) -> Option<ConfigError> {
    let parts = [
        format!("source.{}", config.source.name()),
        format!("store.{}", config.store.name()),
        config.handler.path(),
    ];
    let used = parts.iter().map(String::as_str).chain(config.outbox.target().map(OutboxTarget::path));
    used.into_iter().find_map(|table| {
        let adapter = adapters.iter().find(|adapter| adapter.table == table && !adapter.compiled_in)?;
        let fix = match adapter.feature {
            Some(feature) => {
                format!("install one that has it: cargo install onceward-cli --features {feature}")
            }
            None => "install a build that has it".to_owned(),
        };
        Some(config.refuse(table, "this build of onceward does not have it", fix))
    })
}

/// Every handler's path is an adapter's table; a new one without an entry would pass for compiled in.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Handler, schema};

    #[test]
    fn every_table_of_the_schema_has_an_adapter_entry() {
        let schema = schema();
        let definitions = &schema.as_value()["$defs"];
        let tables = |name: &str| -> Vec<String> {
            definitions[name]["oneOf"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|one| one["required"].as_array().unwrap())
                .map(|table| table.as_str().unwrap().to_owned())
                .collect()
        };
        let prefixed = |prefix: &str, names: Vec<String>| -> Vec<String> {
            names.into_iter().map(|name| format!("{prefix}.{name}")).collect()
        };
        let mut named = [
            prefixed("source", tables("Source")),
            prefixed("store", tables("Store")),
            prefixed("handler", tables("Handler").into_iter().filter(|name| name != "publish").collect()),
            prefixed("handler.publish", tables("PublishHandler")),
            // Where the relay publishes to is a set of optional tables.
            prefixed("outbox", tables("PublishHandler")),
        ]
        .concat();
        named.sort();
        let mut listed: Vec<_> = ADAPTERS.iter().map(|adapter| adapter.table.to_owned()).collect();
        listed.sort();
        assert_eq!(listed, named);
    }

    #[test]
    fn traces_are_refused_rather_than_dropped() {
        let source = "scope = 'a'\n[source.file]\npath = '-'\n[store.memory]\n[key]\nfrom = ['position']\n\
                      [handler.stdout]\n[dead_letter]\nto = 'd'\n[telemetry]\notlp = 'http://127.0.0.1:4317'\n";
        assert_eq!(
            missing_feature(&Config::parse(source, &|_| None).unwrap()).unwrap().to_string(),
            "line 11: telemetry.otlp: no build of onceward has an OTLP exporter yet; remove it, and scrape /metrics \
             (telemetry.listen) meanwhile"
        );
    }

    #[test]
    fn a_build_without_an_adapter_says_how_to_get_it() {
        let source = "scope = 'a'\n[source.sqs]\nqueue_url = 'https://h/q'\n[store.memory]\n\
                      [handler.stdout]\n[dead_letter]\nto = 'd'\n";
        let config = Config::parse(source, &|_| None).unwrap();
        assert!(matches!(config.handler, Handler::Stdout(_)));
        let adapters = [always("store.memory"), with("source.sqs", "sqs", false), always("handler.stdout")];
        assert_eq!(
            missing_adapter(&config, &adapters).unwrap().to_string(),
            "line 2: source.sqs: this build of onceward does not have it; install one that has it: \
             cargo install onceward-cli --features sqs"
        );
    }
}
