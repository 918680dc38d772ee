//! Real servers with passwords, that take them and that refuse them: nothing prints them, at any log level.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::ports::free_port;
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::redis::Redis;
use onceward_test_support::orders::order;
use onceward_test_support::process::{Ended, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::json;

use super::CANARY;
use super::leaks::leak;
use crate::letters::letters_to;
use crate::pair::{Waiting, scene, without_source};
use crate::pubsub::subscription::Subscription;
use crate::rabbitmq::on;
use crate::rabbitmq::queue::Queue as RabbitQueue;
use crate::sqs::queue::Queue as SqsQueue;
use crate::stage::{PATIENCE, exec};

const COMMANDS: [&[&str]; 11] = [
    &["check", "onceward.toml"],
    &["config", "show", "onceward.toml"],
    &["migrate", "onceward.toml"],
    &["run", "onceward.toml", "--until-empty", "--startup-timeout", "5s"],
    &["status", "onceward.toml"],
    &["keys", "list", "onceward.toml"],
    &["dlq", "list", "onceward.toml", "--json"],
    &["dlq", "redrive", "onceward.toml", "--dry-run"],
    &["dlq", "redrive", "onceward.toml", "--yes"],
    &["dlq", "purge", "onceward.toml", "--yes", "--why", "test"],
    &["dlq", "log", "onceward.toml"],
];

/// Runs each command with the secret, and with another one that is refused; answers how they ended. `from` is where dead
/// letters are read, if that is not the place where they go.
fn execute_all(
    setup: &Setup,
    names: &[&str],
    from: Option<&str>,
    more: impl Fn(&Scene),
) -> Vec<(bool, Ended)> {
    let is_endless = setup.text().contains("[source.pubsub]");
    let mut all = Vec::new();
    for (secret, log) in [(CANARY.to_owned(), "text"), (format!("{CANARY}-wrong"), "json")] {
        let scene = scene(&setup.clone().set("telemetry.log", log));
        scene.write("password", format!("{secret}\n").as_bytes());
        more(&scene);
        for args in COMMANDS {
            // Refused where the source does not report whether it is idle.
            let is_kept = |arg: &&str| !(is_endless && *arg == "--until-empty");
            let mut command = scene.command(&args.iter().copied().filter(is_kept).collect::<Vec<_>>());
            if args[0] == "dlq" && args[1] != "log" {
                command.args(from.iter().flat_map(|from| ["--from", *from]));
            }
            command.env("ONCEWARD_LOG", "trace").env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
            command.envs(names.iter().map(|name| (name, &secret)));
            let ended = match args[0] {
                "run" if is_endless => run_once(&scene, &mut command),
                _ => scene.start(&mut command).wait_within(PATIENCE),
            };
            for text in [&ended.stdout, &ended.stderr] {
                assert_eq!(leak(text, CANARY), None, "{args:?} with {secret}");
            }
            all.push((secret == CANARY, ended));
        }
    }
    all
}

/// One message to be read, and no dead letter yet.
fn write_order(scene: &Scene) {
    scene.write("orders.ndjson", order("one", &json!({})).as_bytes());
    scene.write("dead.ndjson", b"");
}

/// A run of a source that cannot report whether it is idle: until its handler has run, or it has ended by itself.
fn run_once(scene: &Scene, command: &mut Command) -> Ended {
    let mut running = scene.start(command);
    until("an effect or the end", PATIENCE, || !scene.notes().is_empty() || !running.is_running());
    if running.is_running() {
        running.terminate();
    }
    running.wait_within(PATIENCE)
}

/// With the right secret all commands end well, and with a wrong one those that need it do not.
fn accepted_and_rejected(runs: &[(bool, Ended)]) {
    for (is_right, ended) in runs.iter().filter(|(is_right, _)| *is_right) {
        assert_eq!((ended.code(), is_right), (Some(0), &true), "{ended:#?}");
    }
    assert!(runs.iter().any(|(is_right, ended)| !is_right && ended.code() == Some(1)), "{runs:#?}");
    assert!(runs.iter().any(|(_, ended)| ended.stderr.contains("DEBUG")), "the log has all levels");
}

#[test]
fn the_password_of_a_rabbitmq_user_is_told_nobody() {
    let queue = RabbitQueue::declare("secret", &[]);
    queue.broker.ctl(&["add_user", "app", CANARY]);
    queue.broker.ctl(&["set_permissions", "app", ".*", ".*", ".*"]);
    let place = format!("127.0.0.1:{}/%2f", queue.broker.port());
    let setup = || on(&queue, without_source());
    let letters = RabbitQueue::declare("secret.dead", &[]);
    for setup in [
        setup().set("source.rabbitmq.url", format!("amqp://app:${{SECRET}}@{place}")),
        setup()
            .set("source.rabbitmq.url", format!("amqp://{place}"))
            .set("source.rabbitmq.username", "app")
            .set("source.rabbitmq.password_file", "password"),
    ] {
        queue.publish(&[order("one", &json!({}))]);
        let setup = letters_to(setup, &letters.name);
        accepted_and_rejected(&execute_all(&setup, &["SECRET"], None, |_| ()));
    }
}

#[test]
fn the_password_of_redis_is_told_nobody() {
    let redis = Redis::start();
    redis.cli(&["CONFIG", "SET", "requirepass", CANARY]);
    let setup = || {
        exec().without("store.sqlite").set("store.redis.url", format!("redis://127.0.0.1:{}", redis.port()))
    };
    for setup in [
        setup().set("store.redis.url", format!("redis://:${{SECRET}}@127.0.0.1:{}", redis.port())),
        setup().set("store.redis.password_file", "password"),
    ] {
        accepted_and_rejected(&execute_all(&setup, &["SECRET"], None, write_order));
    }
}

#[test]
fn the_password_of_a_postgres_user_is_told_nobody() {
    let server = Postgres::start();
    server.sql(&format!("CREATE ROLE app LOGIN SUPERUSER PASSWORD '{CANARY}'"));
    let lines =
        "SELECT unnest(ARRAY['host all app 127.0.0.1/32 scram-sha-256', 'host all all 127.0.0.1/32 trust'])";
    let file = server.sql("SHOW hba_file");
    server.sql(&format!("COPY ({lines}) TO '{file}'"));
    server.sql("SELECT pg_reload_conf()");
    let place = format!("127.0.0.1:{}/postgres", server.address().port());
    let setup =
        || exec().without("store.sqlite").set("store.postgres.url", format!("postgres://app@{place}"));
    for setup in [
        setup().set("store.postgres.url", format!("postgres://app:${{SECRET}}@{place}")),
        setup().set("store.postgres.password", "${SECRET}"),
        setup().set("store.postgres.password_file", "password"),
    ] {
        accepted_and_rejected(&execute_all(&setup, &["SECRET"], None, write_order));
    }
}

/// The emulator takes every key.
#[test]
fn aws_keys_are_told_nobody() {
    let queue = SqsQueue::create("secret", &[]);
    queue.publish(&[order("one", &json!({}))]);
    let letters = SqsQueue::create("secret-dead", &[]);
    let setup = letters_to(crate::sqs::setup(&queue), &letters.url);
    let runs = execute_all(&setup, &["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"], None, |_| ());
    assert!(runs.iter().all(|(_, ended)| ended.code() == Some(0)), "{runs:#?}");
    assert!(runs.iter().any(|(_, ended)| ended.stderr.contains("TRACE")));
}

/// The key of a service account signs tokens that the emulator takes; a text that is no key does not.
#[test]
fn the_key_of_a_service_account_is_printed_nowhere() {
    let subscription = Subscription::create("secret", &json!({}));
    subscription.publish(&[order("one", &json!({}))]);
    let letters = Subscription::create("secret-dead", &json!({}));
    let made = Command::new("openssl").args(["genpkey", "-algorithm", "RSA"]).output().expect("openssl");
    let pem = String::from_utf8(made.stdout).expect("a key in PEM");
    let part = pem.lines().nth(5).expect("a line of a key").to_owned();
    let setup = letters_to(crate::pubsub::setup(&subscription), &letters.topic)
        .without("source.pubsub.credentials")
        .set("source.pubsub.credentials_file", "key.json");
    let runs = execute_all(&setup, &[], Some(&letters.full_name), |scene| {
        let secret = std::fs::read_to_string(scene.path("password")).expect("the secret");
        let is_right = secret.trim() == CANARY;
        let key = json!({
            "type": "service_account",
            "project_id": "test",
            "client_email": "app@test.iam.gserviceaccount.com",
            "private_key_id": CANARY,
            "private_key": if is_right { &pem } else { &secret },
        });
        scene.write("key.json", key.to_string().as_bytes());
    });
    for (_, ended) in &runs {
        for text in [&ended.stdout, &ended.stderr] {
            assert_eq!(leak(text, &part), None);
        }
    }
    accepted_and_rejected(&runs);
}

/// The settings in the environment are looked at as well; none of these hosts is connected to.
#[test]
fn addresses_of_the_environment_are_held_to_the_same_rule() {
    let queue = SqsQueue::create("secret-endpoint", &[]);
    let setup = crate::sqs::setup(&queue).without("source.sqs.endpoint");
    let redirected = scene(&setup);
    let postgres = scene(&exec().without("store.sqlite").set("store.postgres.url", "postgres:///x"));
    postgres.write("orders.ndjson", b"");
    let elsewhere =
        [("AWS_ENDPOINT_URL", "http://192.0.2.1:9324"), ("PGHOST", "192.0.2.1"), ("PGSSLMODE", "disable")];
    for scene in [&redirected, &postgres] {
        for args in [&["check", "onceward.toml"][..], &["run", "onceward.toml", "--until-empty"]] {
            let ended = scene.start(scene.command(args).envs(elsewhere)).wait_within(PATIENCE);
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert!(matches!(ended.code(), Some(1 | 78)) && said.contains("allow_plaintext"), "{ended:#?}");
        }
    }
    assert!(ElasticMq::shared().endpoint().contains("127.0.0.1"));
}

/// Of a broker that takes the password and, later, refuses it.
#[test]
fn metrics_and_health_hold_no_secret() {
    let queue = RabbitQueue::declare("secret-metrics", &[]);
    queue.broker.ctl(&["add_user", "scraped", CANARY]);
    queue.broker.ctl(&["set_permissions", "scraped", ".*", ".*", ".*"]);
    queue.publish(&[order("one", &json!({}))]);
    let port = free_port().expect("a port");
    let url = format!("amqp://scraped:${{SECRET}}@127.0.0.1:{}/%2f", queue.broker.port());
    let setup = on(&queue, without_source())
        .set("scope", "secret-metrics")
        .set("source.rabbitmq.url", url)
        .set("telemetry.listen", format!("127.0.0.1:{port}"));
    let scene = scene(&setup);
    let running = scene.start(scene.command(&["run", "onceward.toml"]).env("SECRET", CANARY));
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok().map(|_| answer)
    };
    let look = |path: &str, said: &str| {
        until(said, PATIENCE, || ask(path).is_some_and(|answer| answer.contains(said)));
        for path in ["/metrics", "/status.json", "/health/live", "/health/ready"] {
            let answer = ask(path).expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 "), "{path}: {answer}");
            assert_eq!(leak(&answer, CANARY), None, "{path}");
        }
    };
    look("/metrics", "onceward_handled_total{scope=\"secret-metrics\"} 1");
    queue.broker.ctl(&["change_password", "scraped", "another"]);
    queue.broker.ctl(&["close_all_user_connections", "scraped", "the password is another"]);
    look("/health/ready", "Login was refused");
    running.kill();
}
