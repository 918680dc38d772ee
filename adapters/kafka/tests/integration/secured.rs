//! A broker with TLS and passwords: authenticated clients work as usual, rejected ones report the cause, and no secret is printed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use onceward::adapter::{Consumer, Settlement};
use onceward::testing::broker::{BrokerHarness, deliveries, settlements};
use onceward::{Error, ErrorKind, Outgoing, Publisher};
use onceward_kafka::{KafkaConfig, KafkaConnection, KafkaConsumer, KafkaPublisher, RetryTopic, TopicConfig};
use onceward_test_servers::certificates::Authority;
use onceward_test_servers::kafka::{Kafka, Listener, Secrets, Security};
use onceward_test_servers::telling::all_told;
use rdkafka::ClientConfig;
use rdkafka::client::{ClientContext, OAuthToken};

use crate::support::{Topic, create, take, text, transact, until};

const PASSWORD: &str = "hunter2-canary";

/// A broker with all kinds of listeners, which lets `onceward` in.
struct Secured {
    broker: Kafka,
    tls: Listener,
    password: Listener,
    both: Listener,
    authority: String,
}

/// The one that these tests share.
async fn secured() -> &'static Secured {
    static SECURED: OnceLock<Secured> = OnceLock::new();
    let start = || {
        let authority = Authority::new("ours");
        let [tls, password, both] =
            [Security::Tls, Security::Password, Security::PasswordOverTls].map(Listener::new);
        let identity = authority.identity("localhost");
        let secrets = Secrets { identity: &identity, user: "onceward", password: PASSWORD };
        let broker = Kafka::start_with_listeners(&[tls, password, both], Some(secrets));
        Secured { broker, tls, password, both, authority: authority.pem() }
    };
    tokio::task::spawn_blocking(move || SECURED.get_or_init(start)).await.unwrap()
}

type Properties = BTreeMap<String, String>;

fn properties<const N: usize>(given: [(&str, &str); N]) -> Properties {
    given.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

impl Secured {
    fn tls(&self) -> (String, Properties) {
        let properties = properties([("security.protocol", "ssl"), ("ssl.ca.pem", &self.authority)]);
        (self.tls.bootstrap(), properties)
    }

    fn both(&self, mechanism: &str) -> (String, Properties) {
        let properties = properties([
            ("security.protocol", "sasl_ssl"),
            ("ssl.ca.pem", &self.authority),
            ("sasl.mechanism", mechanism),
            ("sasl.username", "onceward"),
            ("sasl.password", PASSWORD),
        ]);
        (self.both.bootstrap(), properties)
    }

    fn password(&self, mechanism: &str) -> (String, Properties) {
        let (_, mut properties) = self.both(mechanism);
        properties.remove("ssl.ca.pem");
        properties.insert("security.protocol".into(), "sasl_plaintext".into());
        (self.password.bootstrap(), properties)
    }
}

/// The configuration of a group that reads `topic`, come in by another way.
fn config(topic: &Topic, (bootstrap, properties): (String, Properties)) -> KafkaConfig {
    let mut config = topic.config();
    config.connection.brokers = vec![bootstrap];
    config.connection.properties.extend(properties);
    config
}

struct SecuredHarness {
    topic: Topic,
    config: KafkaConfig,
}

impl SecuredHarness {
    async fn new() -> Self {
        let secured = secured().await;
        let topic = Topic::on(&secured.broker, 1).await;
        let config = config(&topic, secured.both("SCRAM-SHA-512"));
        Self { topic, config }
    }
}

#[async_trait]
impl BrokerHarness for SecuredHarness {
    type Consumer = KafkaConsumer;

    async fn publish(&self, payloads: &[String]) {
        for payload in payloads {
            self.topic.send(0, None, Some(payload)).await;
        }
    }

    async fn open(&self) -> KafkaConsumer {
        let consumer = KafkaConsumer::open(self.config.clone()).await.unwrap();
        until("partitions are assigned", || consumer.assigned_partitions() > 0).await;
        consumer
    }

    fn quiet(&self) -> Duration {
        Duration::from_secs(2)
    }
}

/// The checks of the suite that need several connections, or a reconnect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_with_scram_over_tls_keeps_the_contract() {
    let [first, second, third, fourth] = [(); 4].map(|()| SecuredHarness::new());
    tokio::join!(
        async { deliveries::every_published_message_is_delivered(&first.await).await },
        async { deliveries::what_was_not_acked_comes_again_after_a_drop(&second.await).await },
        async { deliveries::what_was_acked_does_not_come_again(&third.await).await },
        async { settlements::a_batch_is_settled_in_any_order(&fourth.await).await },
    );
}

fn letter(topic: &str, payload: &str) -> Outgoing {
    Outgoing { destination: topic.into(), payload: payload.to_owned().into(), ..Outgoing::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_pass_by_each_secured_way_in_and_into_retry_topics() {
    let secured = secured().await;
    let ways = [
        secured.tls(),
        secured.both("PLAIN"),
        secured.both("SCRAM-SHA-512"),
        secured.password("SCRAM-SHA-512"),
    ];
    futures_util::future::join_all(ways.into_iter().map(|way| passes(secured, way))).await;
}

/// A record, once from its topic and once more by a retry topic.
async fn passes(secured: &Secured, way: (String, Properties)) {
    let topic = Topic::on(&secured.broker, 1).await;
    let retry = format!("{}.retry", topic.name);
    create(&topic.bootstrap, &retry, 1).await;
    let publisher = KafkaPublisher::open(config(&topic, way.clone()).connection).unwrap();
    let sent = publisher.publish(&[letter(&topic.name, "sealed")]).await.remove(0);
    assert!(sent.is_ok(), "{sent:?}");
    let mut config = config(&topic, way);
    config.topics.retry_topics = vec![RetryTopic::new(&retry, Duration::from_secs(1))];
    let mut consumer = KafkaConsumer::open(config.clone()).await.unwrap();
    for settlement in [Settlement::Retry { after: Duration::from_secs(1) }, Settlement::Ack] {
        let taken = take(&mut consumer, 1).await;
        assert_eq!(text(&taken[0]), "sealed");
        consumer.acker().settle(&[(taken[0].tag, settlement)]).await;
    }
    topic.wait_committed(&[1]).await;
    assert_eq!(config.connection.inspect_topic(&retry).await.unwrap().records, 1);
    assert_eq!(config.inspect_group().await.unwrap().members, 1);
    consumer.close().await.unwrap();
}

/// A user's context that has tokens, of ten seconds each.
#[derive(Clone, Default)]
struct Tokens {
    failing: Arc<AtomicBool>,
    failed: Arc<AtomicU32>,
}

/// Of a subject for a hundred years, not signed: `{"alg":"none"}`, `{"sub":"onceward","iat":1,"exp":4102444800}`.
const TOKEN: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJvbmNld2FyZCIsImlhdCI6MSwiZXhwIjo0MTAyNDQ0ODAwfQ.";

impl ClientContext for Tokens {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        if self.failing.load(Ordering::Relaxed) {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return Err("the issuer of tokens is away".into());
        }
        let expires = SystemTime::now().duration_since(UNIX_EPOCH)? + Duration::from_secs(10);
        Ok(OAuthToken {
            token: TOKEN.into(),
            principal_name: "onceward".into(),
            lifetime_ms: i64::try_from(expires.as_millis())?,
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_the_users_context_let_a_consumer_in_and_one_that_is_late_ends_nothing() {
    let secured = secured().await;
    let topic = Topic::on(&secured.broker, 1).await;
    topic.fill(10).await;
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", secured.password.bootstrap()).set("group.id", &topic.group);
    client.set("security.protocol", "sasl_plaintext").set("sasl.mechanism", "OAUTHBEARER");
    let topics = TopicConfig::new([&topic.name]);
    let tokens = Tokens::default();
    let mut consumer = KafkaConsumer::from_client(client, tokens.clone(), topics).await.unwrap();
    let taken = take(&mut consumer, 10).await;
    let batch: Vec<_> = taken.iter().map(|own| (own.tag, Settlement::Ack)).collect();
    consumer.acker().settle(&batch).await;
    topic.wait_committed(&[10]).await;
    // The client that looks past what no consumer is given has a token as well.
    transact(&topic, &[false]).await;
    topic.wait_committed(&[16]).await;
    tokens.failing.store(true, Ordering::Relaxed);
    until("the next token is asked for in vain", || tokens.failed.load(Ordering::Relaxed) > 0).await;
    topic.send(0, None, Some("meanwhile")).await;
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "meanwhile");
    // Its error was reported by then: it arrives with the next poll.
    assert_eq!(consumer.is_idle().await, Some(true));
    topic.send(0, None, Some("later")).await;
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "later");
    consumer.close().await.unwrap();
}

fn assert_tells_no_secret(error: &Error) {
    let told = all_told(error);
    assert!(!told.contains("hunter2"), "{told}");
}

/// The broker hangs up without a word, and the client has only a guess.
const UNTOLD: &str = "security.protocol";

/// Rejected clients: the cause, the connection, the kind of the error, and a part of its text.
fn outsiders(
    secured: &Secured,
    theirs: &str,
) -> Vec<(&'static str, (String, Properties), ErrorKind, &'static str)> {
    let with = |(bootstrap, mut properties): (String, Properties), name: &str, value: &str| {
        properties.insert(name.to_owned(), value.to_owned());
        (bootstrap, properties)
    };
    let (tls, both) = (secured.tls(), secured.both("SCRAM-SHA-512"));
    let mut no_authority = tls.clone();
    no_authority.1.remove("ssl.ca.pem");
    let by_address = (secured.tls.address().to_string(), tls.1.clone());
    let plain = (secured.broker.bootstrap(), tls.1.clone());
    let in_clear = (secured.tls.bootstrap(), Properties::new());
    let without_password = (secured.password.bootstrap(), Properties::new());
    let (denied, unreached) = (ErrorKind::Denied, ErrorKind::Unavailable);
    vec![
        ("another authority", with(tls.clone(), "ssl.ca.pem", theirs), unreached, "ssl.ca.location"),
        ("the system's authorities", no_authority, unreached, "ssl.ca.location"),
        ("another host name", by_address, unreached, "host name in the address"),
        ("TLS to a port without", plain, unreached, "the port expects TLS"),
        ("no TLS to a port with it", in_clear, unreached, UNTOLD),
        ("no password where one is needed", without_password, unreached, UNTOLD),
        (
            "a wrong password",
            with(both.clone(), "sasl.password", "hunter2-wrong"),
            denied,
            "check mechanism, user and password",
        ),
        (
            "a wrong password, PLAIN",
            with(secured.both("PLAIN"), "sasl.password", "hunter2-wrong"),
            denied,
            "password",
        ),
        ("an unknown user", with(both.clone(), "sasl.username", "stranger"), denied, "user"),
        ("another mechanism", with(both, "sasl.mechanism", "SCRAM-SHA-256"), denied, "mechanism"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_let_in_is_told_why_and_no_secret() {
    let secured = secured().await;
    let topic = Topic::on(&secured.broker, 1).await;
    let theirs = Authority::new("theirs").pem();
    let asked = outsiders(secured, &theirs).into_iter().map(|(what, way, kind, hint)| {
        let (config, name) = (config(&topic, way.clone()), topic.name.clone());
        async move {
            let mut connection = KafkaConnection::new([way.0]);
            connection.properties = way.1;
            connection.properties.insert("message.timeout.ms".into(), "3000".into());
            let publisher = KafkaPublisher::open(connection).unwrap();
            let lost = [letter(&name, "lost")];
            let (opened, looked, mut sent) = tokio::join!(
                KafkaConsumer::open(config.clone()),
                config.connection.inspect_topic(&name),
                publisher.publish(&lost)
            );
            let (opened, looked) = (opened.err().unwrap(), looked.unwrap_err());
            for error in [&opened, &looked] {
                assert_eq!(error.kind(), kind, "{what}: {error:?}");
            }
            let sent = sent.remove(0).unwrap_err();
            // A message waits until the password is corrected.
            assert!(sent.is_retryable(), "{what}: {sent:?}");
            for error in [opened, looked] {
                assert!(format!("{error:?}").contains(hint), "{what}: {error:?}");
                assert_tells_no_secret(&error);
            }
            // A broker that hangs up gives a publisher no reason: its messages only time out.
            assert!(hint == UNTOLD || format!("{sent:?}").contains(hint), "{what}: {sent:?}");
            assert_tells_no_secret(&sent);
            assert!(!format!("{config:?}").contains("hunter2"));
        }
    });
    futures_util::future::join_all(asked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_hold_no_certificate_are_named() {
    let secured = secured().await;
    let topic = Topic::on(&secured.broker, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    for file in [empty, folder.path().join("missing.pem")] {
        let (bootstrap, mut properties) = secured.tls();
        properties.remove("ssl.ca.pem");
        properties.insert("ssl.ca.location".into(), file.display().to_string());
        let error = KafkaConsumer::open(config(&topic, (bootstrap, properties))).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        assert!(format!("{error:?}").contains("ssl.ca.location"), "{error:?}");
    }
}
