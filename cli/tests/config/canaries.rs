//! A secret in any place of any table is printed by nothing: the places are those of the schema, so that a new one is found.
#![allow(clippy::unwrap_used)]

use onceward_cli::config::{Config, schema};
use serde_json::Value as Json;
use toml::{Table, Value};

use crate::examples::no_env;
use crate::secrets::everything_printed;

const CANARY: &str = "hunter2canary";

/// Texts that name something or choose an action, and are shown. A new text is either one of them, or gets a type that is
/// redacted.
const NAMES: [&str; 47] = [
    "handler.exec.inherit_env.[]",
    "handler.publish.kafka.password_file",
    "handler.publish.kafka.topic",
    "handler.publish.kafka.username",
    "handler.publish.pubsub.credentials_file",
    "handler.publish.pubsub.project",
    "handler.publish.pubsub.topic",
    "handler.publish.rabbitmq.ca_file",
    "handler.publish.rabbitmq.exchange",
    "handler.publish.rabbitmq.password_file",
    "handler.publish.rabbitmq.routing_key",
    "handler.publish.rabbitmq.username",
    "handler.publish.sqs.region",
    "handler.sql.statement",
    "handler.worker.inherit_env.[]",
    "outbox.kafka.password_file",
    "outbox.kafka.username",
    "outbox.pubsub.credentials_file",
    "outbox.pubsub.project",
    "outbox.rabbitmq.ca_file",
    "outbox.rabbitmq.password_file",
    "outbox.rabbitmq.username",
    "outbox.sqs.region",
    "scope",
    "source.file.path",
    "source.kafka.group",
    "source.kafka.password_file",
    "source.kafka.topics.[]",
    "source.kafka.username",
    "source.pubsub.credentials_file",
    "source.pubsub.project",
    "source.pubsub.subscription",
    "source.pubsub.topic",
    "source.rabbitmq.ca_file",
    "source.rabbitmq.password_file",
    "source.rabbitmq.queue",
    "source.rabbitmq.username",
    "source.sqs.region",
    "store.postgres.ca_file",
    "store.postgres.password_file",
    "store.postgres.schema",
    "store.postgres.username",
    "store.redis.ca_file",
    "store.redis.password_file",
    "store.redis.prefix",
    "store.redis.primary",
    "store.redis.username",
];

/// As [`NAMES`], where a file or an address is meant.
const PATHS: [&str; 5] = [
    "store.sqlite.path",
    "telemetry.listen",
    "telemetry.token_file",
    "key.secret_file",
    "key.previous_secret_file",
];

/// Types whose texts are names of headers and fields.
const NAMING_TYPES: [&str; 3] = ["KeySource", "OrderBy", "FingerprintConfig"];

/// What each table needs besides the place that is looked at.
const NEEDED: [(&str, &str); 23] = [
    ("source.rabbitmq", "url = 'amqps://127.0.0.1/'\nqueue = 'q'"),
    ("source.kafka", "brokers = ['127.0.0.1:1']\ntopics = ['t']\ngroup = 'g'"),
    ("source.sqs", "queue_url = 'https://127.0.0.1/q'"),
    ("source.pubsub", "subscription = 'projects/p/subscriptions/s'"),
    ("source.file", "path = '-'"),
    ("store.redis", "url = 'rediss://127.0.0.1'\ntopology = 'cluster'"),
    ("store.postgres", "url = 'postgres://127.0.0.1/x'"),
    ("store.sqlite", "path = 'x.db'"),
    ("handler.http", "url = 'https://127.0.0.1/'"),
    ("handler.exec", "command = ['sh']"),
    ("handler.worker", "command = ['sh']"),
    ("handler.sql", "statement = 'INSERT INTO t VALUES ($1)'\ntimeout = '1s'"),
    ("handler.publish.rabbitmq", "url = 'amqps://127.0.0.1/'\nrouting_key = 'k'"),
    ("handler.publish.kafka", "brokers = ['127.0.0.1:1']\ntopic = 't'"),
    ("handler.publish.sqs", "queue_url = 'https://127.0.0.1/q'"),
    ("handler.publish.pubsub", "topic = 'projects/p/topics/t'"),
    ("outbox.rabbitmq", "url = 'amqps://127.0.0.1/'"),
    ("outbox.kafka", "brokers = ['127.0.0.1:1']"),
    ("outbox.sqs", ""),
    ("outbox.pubsub", ""),
    ("dead_letter", "to = 'd'"),
    ("telemetry", "listen = '127.0.0.1:1'"),
    ("key", "from = ['json:/id']"),
];

/// The places of texts in the schema, with their types.
fn places(at: &str, schema: &Json, definitions: &Json, found: &mut Vec<(String, String)>) {
    let join = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        let target = &definitions[name];
        let is_table = target["properties"].is_object()
            || target["oneOf"]
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one["properties"].is_object()));
        return match is_table {
            true => places(at, target, definitions, found),
            false => found.push((at.to_owned(), name.to_owned())),
        };
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        places(&join(name), field, definitions, found);
    }
    for one in ["anyOf", "oneOf"].iter().filter_map(|key| schema[*key].as_array()).flatten() {
        places(at, one, definitions, found);
    }
    let is = |kind: &str| match &schema["type"] {
        Json::String(own) => own == kind,
        Json::Array(own) => own.iter().any(|own| own == kind),
        _ => false,
    };
    if is("array") {
        places(&join("[]"), &schema["items"], definitions, found);
    } else if schema["additionalProperties"].is_object() {
        places(&join("*"), &schema["additionalProperties"], definitions, found);
    } else if is("string") {
        found.push((at.to_owned(), "text".to_owned()));
    }
}

fn all_places() -> Vec<(String, String)> {
    let schema = schema();
    let schema = schema.as_value();
    let mut found = Vec::new();
    places("", schema, &schema["$defs"], &mut found);
    // Choices, numbers with a unit and the like have no room for a secret.
    let closed = |kind: &str| {
        let one = &schema["$defs"][kind];
        one["enum"].is_array() || one["oneOf"].is_array() || ["Duration", "Bytes"].contains(&kind)
    };
    found.retain(|(_, kind)| NAMING_TYPES.contains(&&**kind) || !closed(kind));
    found
}

/// A whole configuration with `text` at `place`.
fn with(place: &str, kind: &str, text: &str) -> String {
    let mut config: Table =
        "scope = 'a'\n[source.file]\npath = '-'\n[store.sqlite]\npath = 'x.db'\n[key]\nfrom = ['json:/id']\n\
                             [handler.stdout]\n[dead_letter]\nto = 'd'\n"
            .parse()
            .unwrap();
    let (mut table, mut name) = place.rsplit_once('.').unwrap_or(("", place));
    let mut value = match kind {
        "Properties" => {
            let names = [
                "sasl.password",
                "ssl.key.pem",
                "ssl.key.password",
                "sasl.oauthbearer.client.secret",
                "made.up",
                "client.software",
            ];
            Value::Table(names.iter().map(|name| ((*name).to_owned(), Value::from(text))).collect())
        }
        _ => Value::from(text),
    };
    if name == "[]" {
        (table, name) = table.rsplit_once('.').unwrap();
        value = match name {
            "command" => Value::from(vec!["sh", text]),
            _ => Value::from(vec![value]),
        };
    } else if name == "*" {
        (table, name) = table.rsplit_once('.').unwrap();
        value = Value::Table(Table::from_iter([("X".to_owned(), value)]));
    }
    let needed = NEEDED.iter().find(|(own, _)| *own == table);
    assert!(table.is_empty() || table == "pipeline" || needed.is_some(), "say what [{table}] needs");
    let mut whole: Table = needed.map_or("", |(_, needed)| needed).parse().unwrap();
    whole.insert(name.to_owned(), value);
    match table.split('.').collect::<Vec<_>>()[..] {
        [""] => config.extend(whole),
        [one] => drop(config.insert(one.to_owned(), whole.into())),
        [one, two] => {
            drop(config.insert(one.to_owned(), Table::from_iter([(two.to_owned(), whole.into())]).into()))
        }
        [one, two, three] => {
            let inner = Table::from_iter([(three.to_owned(), whole.into())]);
            config.insert(one.to_owned(), Table::from_iter([(two.to_owned(), inner.into())]).into());
        }
        _ => panic!("{table} is deeper than any other"),
    }
    toml::to_string(&config).unwrap()
}

/// A secret where a URL has room for one.
fn in_urls() -> impl Iterator<Item = String> {
    ["https", "amqps", "rediss", "postgres"].into_iter().flat_map(|scheme| {
        [
            "u:SECRET@127.0.0.1/",
            "SECRET@127.0.0.1/",
            ":SECRET@127.0.0.1",
            "127.0.0.1/?x=SECRET",
            "127.0.0.1/?SECRET",
            "127.0.0.1/?password=SECRET",
            "127.0.0.1/#SECRET",
            "u:SECRET/@127.0.0.1",
            "u:SECRET?@127.0.0.1/",
        ]
        .map(|rest| format!("{scheme}://{}", rest.replace("SECRET", CANARY)))
    })
}

#[test]
fn a_secret_in_any_place_of_the_schema_is_never_printed() {
    let places = all_places();
    assert!(places.len() > 60, "{places:?}");
    let mut accepted = 0;
    for (place, kind) in &places {
        let mut hidden: Vec<String> = in_urls().collect();
        match kind.as_str() {
            "Secret" | "Properties" => hidden.extend([CANARY.to_owned(), format!("Bearer {CANARY}")]),
            "HookUrl" => hidden.push(format!("https://127.0.0.1/services/{CANARY}")),
            "Address" if place.contains(".command.") => hidden.push(format!("--password={CANARY}")),
            "Address" => {}
            "text" if NAMES.contains(&&**place) || PATHS.contains(&&**place) => continue,
            kind if NAMING_TYPES.contains(&kind) => continue,
            _ => panic!("{place} is a new text ({kind}): say whether it may be shown"),
        }
        for text in hidden {
            let source = with(place, kind, &text);
            let result = Config::parse(&source, &no_env);
            accepted += usize::from(result.is_ok());
            let printed = match result {
                // The arguments of a command are for the program that shows a configuration, not for its own debugging.
                Ok(config) if place.contains(".command.") => config.to_toml().unwrap(),
                result => everything_printed(result),
            };
            assert!(!printed.contains(CANARY), "{place}\n{source}\n{printed}");
        }
    }
    assert!(accepted > 200, "most of them are refused, and so not shown: {accepted}");
}
