//! A replaced password file: running clients use the new password for new connections.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use onceward::adapter::{Consumer, Settlement};
use onceward::telemetry::SourceState;
use onceward::{ErrorKind, Outgoing, Publisher};
use onceward_kafka::{KafkaConfig, KafkaConsumer, KafkaPublisher};
use onceward_test_servers::certificates::Authority;
use onceward_test_servers::kafka::{Kafka, Listener, Secrets, Security};
use onceward_test_servers::proxy::Proxy;

use crate::support::{Topic, take, text, until};

const PASSWORD: &str = "hunter2-canary";

/// After this long a publisher looks at its file again; it does not show that it has.
const LOOK: Duration = Duration::from_millis(2_100);

/// With a password that comes from `file`.
fn with_file(mut config: KafkaConfig, listener: &Listener, file: &std::path::Path) -> KafkaConfig {
    config.connection.brokers = vec![listener.bootstrap()];
    let properties = [
        ("security.protocol", "sasl_plaintext"),
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "onceward"),
        // So that a refused client is soon back.
        ("reconnect.backoff.max.ms", "200"),
    ];
    let properties: BTreeMap<_, _> =
        properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    config.connection.properties.extend(properties);
    config.connection.password_file = Some(file.to_owned());
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_replaced_holds_for_the_next_connections() {
    let listener = Listener::new(Security::Password);
    let proxy = Proxy::start(listener.address()).unwrap();
    let listener = listener.advertised(proxy.port());
    let broker = tokio::task::spawn_blocking(move || {
        let authority = Authority::new("ours");
        let identity = authority.identity("localhost");
        let secrets = Secrets { identity: &identity, user: "onceward", password: PASSWORD };
        Kafka::start_with_listeners(&[listener], Some(secrets))
    })
    .await
    .unwrap();
    let topic = Topic::on(&broker, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let config = with_file(topic.config(), &listener, &file);

    assert_eq!(
        KafkaConsumer::open(config.clone()).await.err().unwrap().kind(),
        ErrorKind::Config,
        "no file yet"
    );
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let mut consumer = KafkaConsumer::open(config.clone()).await.unwrap();
    let mut sending = config.connection.clone();
    sending.properties.insert("message.timeout.ms".into(), "3000".into());
    let publisher = KafkaPublisher::open(sending).unwrap();
    let letter = |payload: &'static str| {
        [Outgoing { destination: topic.name.clone(), payload: payload.into(), ..Outgoing::default() }]
    };
    publisher.publish(&letter("first")).await.remove(0).unwrap();
    let first = take(&mut consumer, 1).await;
    assert_eq!(text(&first[0]), "first");
    consumer.acker().settle(&[(first[0].tag, Settlement::Ack)]).await;
    topic.wait_committed(&[1]).await;

    // A password that the broker rejects: open connections stay, and new ones are rejected.
    std::fs::write(&file, "hunter2-wrong").unwrap();
    let mut cut = Instant::now();
    let is_refused = || {
        // Long enough for a login between two cuts.
        if cut.elapsed() > Duration::from_millis(500) {
            proxy.cut();
            cut = Instant::now();
        }
        is_down(&consumer, "authentication failed")
    };
    until("the consumer's login is refused", is_refused).await;
    tokio::time::sleep(LOOK).await;
    proxy.cut();
    let refused = publisher.publish(&letter("refused")).await.remove(0).unwrap_err();
    assert!(!refused.to_string().contains("hunter2"), "{refused}");

    std::fs::write(&file, PASSWORD).unwrap();
    tokio::time::sleep(LOOK).await;
    publisher.publish(&letter("second")).await.remove(0).unwrap();
    until("the consumer's login is taken", || !is_down(&consumer, "")).await;
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "second");
}

fn is_down(consumer: &KafkaConsumer, why: &str) -> bool {
    matches!(consumer.health().unwrap().state(), SourceState::Down(reason) if reason.contains(why))
}
