//! `amqps` on a real broker: encrypted, verified, and refused where it must be.

use onceward::adapter::Consumer;
use onceward::{ErrorKind, Publisher};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqPublisher};
use onceward_test_servers::rabbitmq::{RabbitMq, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::support::{Admin, Kind, take, text};

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amqps_encrypts_and_verifies() {
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &ours).unwrap();
    let folder = std::env::temp_dir().join(format!("onceward-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (our_ca, their_ca, empty) =
        (folder.join("ours.pem"), folder.join("theirs.pem"), folder.join("empty.pem"));
    std::fs::write(&our_ca, ours.pem()).unwrap();
    std::fs::write(&their_ca, theirs.pem()).unwrap();
    std::fs::write(&empty, "").unwrap();
    let broker = tokio::task::spawn_blocking(move || {
        let (authority, certificate, key) = (ours.pem(), certificate.pem(), key.serialize_pem());
        RabbitMq::start_with("", Some(Tls { authority: &authority, certificate: &certificate, key: &key }))
    })
    .await
    .unwrap();
    let admin = Admin::connect(&broker).await;
    admin.declare("orders", Kind::Classic).await;
    let url = |host: &str, port: u16| format!("amqps://guest:guest@{host}:{port}/%2f");

    let mut config = RabbitmqConfig::new(url("localhost", broker.tls_port()), "orders");
    config.endpoint.ca_file = Some(our_ca.clone());
    let publisher = RabbitmqPublisher::open(config.endpoint.clone()).await.unwrap();
    let message =
        onceward::Outgoing { destination: "orders".into(), payload: "sealed".into(), ..Default::default() };
    assert!(publisher.publish(&[message]).await[0].is_ok());
    let mut consumer = RabbitmqConsumer::open(config).await.unwrap();
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "sealed");
    let encrypted = broker.ctl(&["list_connections", "--no-table-headers", "name", "ssl"]);
    assert_eq!(encrypted.lines().filter(|line| line.ends_with("true")).count(), 2, "{encrypted}");
    consumer.close().await.unwrap();

    for (host, port, ca, kind, hint) in [
        ("localhost", broker.tls_port(), Some(&their_ca), ErrorKind::Unavailable, "certificate"),
        ("localhost", broker.tls_port(), None, ErrorKind::Unavailable, "certificate"),
        ("127.0.0.1", broker.tls_port(), Some(&our_ca), ErrorKind::Unavailable, "certificate"),
        ("localhost", broker.port(), Some(&our_ca), ErrorKind::Unavailable, "TLS port"),
        ("localhost", broker.tls_port(), Some(&empty), ErrorKind::Config, "no certificate"),
        ("localhost", broker.tls_port(), Some(&folder.join("missing.pem")), ErrorKind::Config, "missing.pem"),
    ] {
        let mut endpoint = RabbitmqEndpoint::new(url(host, port).replace("guest:guest", "guest:hunter2"));
        endpoint.ca_file = ca.cloned();
        let error = RabbitmqPublisher::open(endpoint).await.err().unwrap();
        let said = format!("{error:?}");
        assert_eq!(error.kind(), kind, "{said}");
        assert!(said.contains(hint) && !said.contains("hunter2"), "{said}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
