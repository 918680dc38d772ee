//! The files with secrets in them that a configuration names: [`secret_files`].

use std::path::PathBuf;

use url::Url;

use super::plaintext::normalised;
use super::{Config, Credentials, Handler, OutboxTarget, Properties, PublishHandler, Source, Store};

/// Properties of Kafka that name a file with a private key.
const KEY_FILES: [&str; 3] = ["ssl.key.location", "ssl.keystore.location", "sasl.kerberos.keytab"];

/// Each file that holds a password or a private key, with the key that names it. Paths are as this file means them.
pub(super) fn secret_files(config: &Config) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    for (table, credentials) in logins(config) {
        let file = credentials.password_file.map(|file| config.resolve(file));
        files.extend(file.map(|file| (format!("{table}.password_file"), file)));
    }
    for (table, properties) in properties(config) {
        let keys = properties.expose().filter(|(name, _)| KEY_FILES.contains(&&*normalised(name)));
        files.extend(keys.map(|(_, file)| (format!("{table}.properties"), PathBuf::from(file))));
    }
    if let Store::Postgres(store) = &config.store
        && let Ok(url) = Url::parse(store.url.expose())
    {
        let keys = url.query_pairs().filter(|(name, _)| matches!(&**name, "sslkey" | "ssl-key"));
        files.extend(keys.map(|(_, file)| ("store.postgres.url".to_owned(), PathBuf::from(&*file))));
    }
    files
}

fn logins(config: &Config) -> impl Iterator<Item = (&'static str, Credentials<'_>)> {
    let source = match &config.source {
        Source::Rabbitmq(source) => Some(("source.rabbitmq", source.credentials())),
        Source::Kafka(source) => Some(("source.kafka", source.credentials())),
        Source::Sqs(_) | Source::File(_) => None,
    };
    let store = match &config.store {
        Store::Redis(store) => Some(("store.redis", store.credentials())),
        Store::Postgres(store) => Some(("store.postgres", store.credentials())),
        Store::Sqlite(_) | Store::Memory(_) => None,
    };
    let handler = match &config.handler {
        Handler::Publish(PublishHandler::Rabbitmq(target)) => {
            Some(("handler.publish.rabbitmq", target.credentials()))
        }
        Handler::Publish(PublishHandler::Kafka(target)) => {
            Some(("handler.publish.kafka", target.credentials()))
        }
        _ => None,
    };
    let outbox = match config.outbox.target() {
        Some(OutboxTarget::Rabbitmq(target)) => Some(("outbox.rabbitmq", target.credentials())),
        Some(OutboxTarget::Kafka(target)) => Some(("outbox.kafka", target.credentials())),
        Some(OutboxTarget::Sqs(_)) | None => None,
    };
    [source, store, handler, outbox].into_iter().flatten()
}

fn properties(config: &Config) -> impl Iterator<Item = (&'static str, &Properties)> {
    let source = match &config.source {
        Source::Kafka(source) => Some(("source.kafka", &source.properties)),
        _ => None,
    };
    let handler = match &config.handler {
        Handler::Publish(PublishHandler::Kafka(target)) => {
            Some(("handler.publish.kafka", &target.properties))
        }
        _ => None,
    };
    let outbox = match config.outbox.target() {
        Some(OutboxTarget::Kafka(target)) => Some(("outbox.kafka", &target.properties)),
        _ => None,
    };
    [source, handler, outbox].into_iter().flatten()
}
