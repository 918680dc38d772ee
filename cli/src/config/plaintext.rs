//! Which connections of a configuration would show a credential to others: [`exposures`].

use onceward::{host_of, is_local_host};
use url::Url;

use super::address::Address;
use super::{
    Config, Handler, KafkaCluster, OutboxTarget, PostgresStore, PublishHandler, RabbitmqBroker, RedisStore,
    RedisTopology, Source, SqsPlace, Store,
};

/// A connection to another host that others on the way could read, or answer in the place of the server.
pub(super) struct Exposure {
    /// The table that holds `allow_plaintext`.
    pub(super) table: String,
    /// The key to correct.
    pub(super) key: String,
    /// What would be shown, and to whom.
    pub(super) problem: &'static str,
    /// How it is avoided.
    pub(super) fix: &'static str,
    /// It is wanted: `allow_plaintext = true`.
    pub(super) allowed: bool,
}

/// Found, and what is wrong with it: key within the table, problem, fix.
type Found = Option<(&'static str, &'static str, &'static str)>;

/// All of them, in the order of the file's tables.
pub(super) fn exposures(config: &Config) -> Vec<Exposure> {
    [source(config), store(config), handler(config), outbox(config)].into_iter().flatten().collect()
}

fn exposure(table: &str, allowed: bool, found: Found) -> Option<Exposure> {
    let (key, problem, fix) = found?;
    Some(Exposure { table: table.to_owned(), key: format!("{table}.{key}"), problem, fix, allowed })
}

fn source(config: &Config) -> Option<Exposure> {
    match &config.source {
        Source::Rabbitmq(source) => rabbitmq("source.rabbitmq", source.broker()),
        Source::Kafka(source) => kafka("source.kafka", source.cluster()),
        Source::Sqs(source) => sqs("source.sqs", source.place(), Some(&source.queue_url)),
        Source::File(_) => None,
    }
}

fn store(config: &Config) -> Option<Exposure> {
    match &config.store {
        Store::Redis(store) => exposure("store.redis", store.allow_plaintext, redis(store)),
        Store::Postgres(store) => exposure("store.postgres", store.allow_plaintext, postgres(store)),
        Store::Sqlite(_) | Store::Memory(_) => None,
    }
}

fn handler(config: &Config) -> Option<Exposure> {
    match &config.handler {
        Handler::Http(handler) => {
            let found = is_open(handler.url.address(), &["http"]).then_some((
                "url",
                "is http:// on another host, so that the claim's token, which each request holds, and configured headers could be \
                 read on the way",
                "write https://",
            ));
            exposure("handler.http", handler.allow_plaintext, found)
        }
        Handler::Publish(PublishHandler::Rabbitmq(target)) => {
            rabbitmq("handler.publish.rabbitmq", target.broker())
        }
        Handler::Publish(PublishHandler::Kafka(target)) => kafka("handler.publish.kafka", target.cluster()),
        Handler::Publish(PublishHandler::Sqs(target)) => {
            sqs("handler.publish.sqs", target.place(), Some(&target.queue_url))
        }
        Handler::Exec(_) | Handler::Worker(_) | Handler::Sql(_) | Handler::Stdout(_) => None,
    }
}

fn outbox(config: &Config) -> Option<Exposure> {
    match config.outbox.target()? {
        OutboxTarget::Rabbitmq(target) => rabbitmq("outbox.rabbitmq", target.broker()),
        OutboxTarget::Kafka(target) => kafka("outbox.kafka", target.cluster()),
        OutboxTarget::Sqs(target) => sqs("outbox.sqs", target.place(), None),
    }
}

fn rabbitmq(table: &str, broker: RabbitmqBroker<'_>) -> Option<Exposure> {
    let has_login = broker.credentials.is_given() || has_login(broker.url);
    let found = (has_login && is_open(broker.url, &["amqp"])).then_some((
        "url",
        "is amqp:// on another host, so that user and password could be read on the way",
        "write amqps://, with the broker's authority in ca_file if the system does not know it",
    ));
    exposure(table, broker.allow_plaintext, found)
}

/// Each request is signed, and could be sent again by who reads it. Without an endpoint all goes to AWS, whatever the queue's
/// URL says; one of http:// is a mistake then, which is told as one.
fn sqs(table: &str, place: SqsPlace<'_>, queue_url: Option<&Address>) -> Option<Exposure> {
    let (key, address) = match (place.endpoint, queue_url) {
        (Some(endpoint), _) => ("endpoint", endpoint),
        (None, Some(queue_url)) => ("queue_url", queue_url),
        (None, None) => return None,
    };
    let found = is_open(address, &["http"]).then_some((
        key,
        "is http:// on another host, so that signed requests, session tokens and messages could be read on the way",
        "write https://",
    ));
    exposure(table, place.allow_plaintext, found)
}

fn redis(store: &RedisStore) -> Found {
    const PLAIN: [&str; 2] = ["redis", "valkey"];
    let urls = || [&store.url].into_iter().chain(&store.nodes);
    let open = |url: &&Address| is_open(url, &PLAIN);
    let urls_show = urls().any(has_login) && urls().any(|url| open(&url));
    // Sentinels name the primary; it is reached with TLS where they are, or where its authority is given.
    let is_sentinel = store.topology == RedisTopology::Sentinel;
    let is_encrypted = is_sentinel && (store.ca_file.is_some() || urls().any(|url| !url.has_scheme(&PLAIN)));
    let fields_show = store.credentials().is_given() && !is_encrypted && urls().any(|url| open(&url));
    (urls_show || fields_show).then_some((
        "url",
        "is redis:// on another host, so that the password could be read on the way",
        "write rediss://, with the server's authority in ca_file if the system does not know it",
    ))
}

/// Where the URL says nothing, the server is verified; `verify-ca` verifies it but for its name.
fn postgres(store: &PostgresStore) -> Found {
    let url = Url::parse(store.url.expose()).ok()?;
    let decoded = |host: &str| {
        if host.to_ascii_lowercase().starts_with("%2f") { "/".to_owned() } else { host.to_owned() }
    };
    let in_query = |wanted: &[&str]| {
        let found: Vec<_> = url.query_pairs().filter(|(name, _)| wanted.contains(&&**name)).collect();
        found.into_iter().map(|(_, value)| value.into_owned()).collect::<Vec<_>>()
    };
    // An address without a host is that of a socket, or of the environment, which the adapter looks at.
    let hosts = url.host_str().filter(|host| !host.is_empty()).map(decoded);
    let is_local = hosts.into_iter().chain(in_query(&["host", "hostaddr"])).all(|host| is_local_host(&host));
    let mode = in_query(&["sslmode", "ssl-mode"]).pop()?.to_ascii_lowercase();
    // A certificate authority in `ca_file` makes it verify-full.
    let is_verified = matches!(&*mode, "verify-full" | "verify-ca") || store.ca_file.is_some();
    (!is_local && !is_verified).then_some((
        "url",
        "has an sslmode that does not verify the server on another host, so that anybody on the way could take the password, or \
         answer in its place",
        "remove sslmode or write verify-full, with the server's authority in ca_file if the system does not know it",
    ))
}

fn kafka(table: &str, cluster: KafkaCluster<'_>) -> Option<Exposure> {
    exposure(table, cluster.allow_plaintext, kafka_found(cluster))
}

fn kafka_found(cluster: KafkaCluster<'_>) -> Found {
    // However a name is written, and however often.
    let any = |wanted: &str, is_wrong: &dyn Fn(&str) -> bool| {
        let mut all = cluster.properties.expose().filter(|(name, _)| normalised(name) == wanted);
        all.any(|(_, value)| is_wrong(&value.trim().to_ascii_lowercase()))
    };
    let is_open = |url: &str| {
        let url = Address::from(url.to_owned());
        !url.has_scheme(&["https"]) && is_elsewhere(&url)
    };
    if any("sasl.oauthbearer.token.endpoint.url", &is_open) {
        return Some((
            "properties",
            "has a token endpoint of http:// on another host, where the client's secret could be read on the way",
            "write https:// in sasl.oauthbearer.token.endpoint.url",
        ));
    }
    let brokers = cluster.brokers.iter().flat_map(|brokers| brokers.expose().split(','));
    if brokers.filter(|broker| !broker.trim().is_empty()).all(|broker| is_local_host(host_of(broker))) {
        return None;
    }
    if any("security.protocol", &|protocol| protocol == "sasl_plaintext") {
        return Some((
            "properties",
            "has the login sent without TLS to another host, where anybody on the way can read it, or guess the password from \
             what is sent",
            r#"write security.protocol = "sasl_ssl""#,
        ));
    }
    let has_password = cluster.credentials.password.is_some() || cluster.credentials.password_file.is_some();
    let is_said = any("security.protocol", &|_| true);
    let is_tls =
        any("security.protocol", &|protocol| protocol.ends_with("ssl")) || (has_password && !is_said);
    let is_blind = any("enable.ssl.certificate.verification", &|on| !matches!(on, "true" | "t" | "1"))
        || any("ssl.endpoint.identification.algorithm", &|algorithm| algorithm != "https");
    (is_tls && is_blind).then_some((
        "properties",
        "turns off the verification of brokers on another host, so that anybody on the way could answer in their place",
        "remove enable.ssl.certificate.verification and ssl.endpoint.identification.algorithm, and name the brokers' authority in \
         ssl.ca.location",
    ))
}

/// A property's name as librdkafka would take it at its most lenient.
pub(super) fn normalised(name: &str) -> String {
    let name = name.trim().to_ascii_lowercase();
    name.strip_prefix("topic.").map(str::to_owned).unwrap_or(name)
}

/// True for a URL of one of these schemes that leads to another host.
fn is_open(address: &Address, schemes: &[&str]) -> bool {
    address.has_scheme(schemes) && is_elsewhere(address)
}

fn is_elsewhere(address: &Address) -> bool {
    !Url::parse(address.expose()).is_ok_and(|url| url.host_str().is_some_and(is_local_host))
}

fn has_login(address: &Address) -> bool {
    Url::parse(address.expose()).is_ok_and(|url| !url.username().is_empty() || url.password().is_some())
}
