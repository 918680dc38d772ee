//! A broker with TLS and a password: the program by its configuration, and what it reports if it is not
//! authenticated.

use onceward_test_servers::certificates::Authority;
use onceward_test_servers::kafka::{Kafka, Listener, Secrets, Security};
use onceward_test_support::orders;
use onceward_test_support::process::Ended;
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::json;

use super::setup;
use super::topic::Topic;
use crate::pair::{Waiting, scene};
use crate::secrets::leaks::leak;
use crate::stage::PATIENCE;

const CANARY: &str = "hunter2canary";

fn secured(topic: &Topic<'_>, listener: &Listener) -> Setup {
    setup(topic)
        .set("source.kafka.brokers", vec![listener.bootstrap()])
        .set("source.kafka.username", "onceward")
        .set("source.kafka.password", "${SECRET}")
        .set("source.kafka.properties.sasl.mechanism", "SCRAM-SHA-512")
        .set("source.kafka.properties.ssl.ca.location", "ours.pem")
        // The most talkative that the client can be.
        .set("source.kafka.properties.debug", "all")
        .set("policy.on_exhausted", "dead-letter")
        .set("store.redis.ttl", "8d")
        .set("dead_letter.to", format!("{}.dead", topic.name))
}

/// Runs a command line with a password in the environment; what it prints holds none.
fn execute(scene: &Scene, password: &str, args: &[&str]) -> Ended {
    let mut command = scene.command(args);
    command.env("SECRET", password).env("RUST_LOG", "trace").env("ONCEWARD_LOG", "trace");
    let ended = scene.start(&mut command).wait_within(PATIENCE);
    for text in [&ended.stdout, &ended.stderr] {
        assert_eq!(leak(text, password), None, "{args:?} printed the password");
    }
    ended
}

#[test]
fn a_password_over_tls_lets_the_program_in_and_is_told_nobody() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let listener = Listener::new(Security::PasswordOverTls);
    let identity = ours.identity("localhost");
    let secrets = Secrets { identity: &identity, user: "onceward", password: CANARY };
    let broker = Kafka::start_with_listeners(&[listener], Some(secrets));
    let (topic, dead) =
        (Topic::create_on(&broker, "secured", 2), Topic::create_on(&broker, "secured.dead", 1));
    let mut lines: Vec<_> =
        (0..20).map(|number| orders::order(&format!("order-{number}"), &json!({}))).collect();
    lines.push(orders::order("ill", &json!({"do": "permanent"})));
    topic.publish(&lines);
    let scene = scene(&secured(&topic, &listener));
    scene.write("ours.pem", ours.pem().as_bytes());

    for command in [&["check", "onceward.toml"][..], &["config", "show", "onceward.toml"]] {
        let ended = execute(&scene, CANARY, command);
        assert_eq!(ended.code(), Some(0), "{ended:#?}");
    }
    let ended = execute(&scene, CANARY, &["run", "onceward.toml", "--until-empty"]);
    assert_eq!((ended.code(), ended.summary("handled")), (Some(3), 20), "{ended:#?}");
    assert!(ended.stderr.contains("SSL"), "the client told nothing of itself: {ended:#?}");
    assert!(topic.is_empty(), "{:?}", topic.committed());
    assert_eq!(dead.records().len(), 1);

    let wrong_password = execute(&scene, "hunter2-wrong", &["run", "onceward.toml"]);
    scene.write("ours.pem", theirs.pem().as_bytes());
    let wrong_authority = execute(&scene, CANARY, &["check", "onceward.toml"]);
    for (ended, hint) in [
        (wrong_password, "authentication failed; check mechanism, user and password"),
        (wrong_authority, "ssl.ca.location contains the authority of the broker's certificate"),
    ] {
        assert!(!matches!(ended.code(), Some(0 | 3)), "{ended:#?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains(hint), "{said}");
    }
}
