//! Credentials go to other hosts over verified TLS only, unless it is written otherwise; and no property runs code.

use onceward_cli::config::Config;

use crate::examples::{no_env, parse, refusal};

/// A whole configuration with the tables of `part` in the place of the usual ones.
fn with_part(part: &str) -> String {
    let mut source = String::from("scope = 'a'\n");
    for (table, usual) in [
        ("[source.", "[source.file]\npath = '-'\n"),
        ("[store.", "[store.sqlite]\npath = 'x.db'\n"),
        ("[handler.", "[handler.stdout]\n"),
    ] {
        if !part.starts_with(table) {
            source.push_str(usual);
        }
    }
    source + "[key]\nfrom = ['json:/id']\n[dead_letter]\nto = 'd'\n" + part
}

const KAFKA: &str = "topics = ['t']\ngroup = 'g'\nbrokers = ['127.0.0.1:1', 'kafka.example:9092']\n";

/// Configurations that would each expose something to anyone on the network path, and the key that the error names.
fn exposed() -> Vec<(String, &'static str)> {
    let mut all: Vec<(String, &'static str)> = Vec::new();
    let mut add = |part: &str, key: &'static str| all.push((part.to_owned(), key));
    for host in
        ["rabbit.example", "10.0.0.1", "localhost.evil.example", "[2001:db8::1]", "127.0.0.1.nip.io", "127.1"]
    {
        add(
            &format!("[source.rabbitmq]\nurl = 'amqp://u:p@{host}/%2f'\nqueue = 'q'\n"),
            "source.rabbitmq.url",
        );
        add(&format!("[store.redis]\nurl = 'redis://:p@{host}:6379'\n"), "store.redis.url");
    }
    for login in ["username = 'u'", "password = 'p'", "password_file = 'p'"] {
        add(&format!("[source.rabbitmq]\nurl = 'amqp://h'\nqueue = 'q'\n{login}\n"), "source.rabbitmq.url");
        add(
            &format!("[handler.publish.rabbitmq]\nurl = 'amqp://h'\nrouting_key = 'k'\n{login}\n"),
            "handler.publish.rabbitmq.url",
        );
        add(&format!("[outbox.rabbitmq]\nurl = 'AMQP://h'\n{login}\n"), "outbox.rabbitmq.url");
        add(&format!("[store.redis]\nurl = 'valkey://h'\n{login}\n"), "store.redis.url");
        add(
            &format!(
                "[store.redis]\nurl = 'redis://127.0.0.1'\nnodes = ['redis://h']\ntopology = 'cluster'\n{login}\n"
            ),
            "store.redis.url",
        );
        add(
            &format!("[store.redis]\nurl = 'redis://h'\ntopology = 'sentinel'\nprimary = 'm'\n{login}\n"),
            "store.redis.url",
        );
    }
    add(
        "[store.redis]\nurl = 'redis://:p@h'\ntopology = 'sentinel'\nprimary = 'm'\nca_file = 'ca.pem'\n",
        "store.redis.url",
    );
    for mode in ["disable", "allow", "prefer", "require", "REQUIRE", "verify-full&sslmode=require"] {
        add(&format!("[store.postgres]\nurl = 'postgres://u:p@db/x?sslmode={mode}'\n"), "store.postgres.url");
        add(&format!("[store.postgres]\nurl = 'postgresql://db/x?ssl-mode={mode}'\n"), "store.postgres.url");
        add(
            &format!("[store.postgres]\nurl = 'postgres://127.0.0.1/x?hostaddr=10.0.0.1&sslmode={mode}'\n"),
            "store.postgres.url",
        );
        add(
            &format!("[store.postgres]\nurl = 'postgres://localhost,db.example/x?sslmode={mode}'\n"),
            "store.postgres.url",
        );
    }
    add("[handler.http]\nurl = 'http://hook.example/x'\n", "handler.http.url");
    add("[handler.http]\nurl = 'http://u:p@hook.example/x'\n", "handler.http.url");
    add(
        "[handler.http]\nurl = 'http://localhost@hook.example/x'\nheaders = { Authorization = 'x' }\n",
        "handler.http.url",
    );
    add("[source.sqs]\nqueue_url = 'https://h/q'\nendpoint = 'http://sqs.example'\n", "source.sqs.endpoint");
    add("[source.sqs]\nqueue_url = 'http://sqs.example/1/q'\n", "source.sqs.queue_url");
    add(
        "[handler.publish.sqs]\nqueue_url = 'https://h/q'\nendpoint = 'http://10.1.1.1:9324'\n",
        "handler.publish.sqs.endpoint",
    );
    add("[outbox.sqs]\nendpoint = 'http://10.1.1.1:9324'\n", "outbox.sqs.endpoint");
    add(
        "[source.pubsub]\nsubscription = 's'\nproject = 'p'\nendpoint = 'http://pubsub.example'\n",
        "source.pubsub.endpoint",
    );
    add(
        "[handler.publish.pubsub]\ntopic = 't'\nproject = 'p'\nendpoint = 'http://10.1.1.1:8085'\n",
        "handler.publish.pubsub.endpoint",
    );
    add("[outbox.pubsub]\nendpoint = 'http://10.1.1.1:8085'\n", "outbox.pubsub.endpoint");
    for properties in [
        "security.protocol = 'sasl_plaintext'",
        "security.protocol = 'SASL_PLAINTEXT'\nsasl.mechanism = 'SCRAM-SHA-512'",
        "'Security.Protocol' = 'plaintext'\nsecurity.protocol = 'sasl_plaintext'",
        "security.protocol = 'sasl_plaintext'\nsasl.mechanisms = 'OAUTHBEARER'",
        "security.protocol = 'sasl_ssl'\nenable.ssl.certificate.verification = false",
        "security.protocol = 'SSL'\nenable.ssl.certificate.verification = 'F'",
        "security.protocol = 'sasl_ssl'\nssl.endpoint.identification.algorithm = 'None'",
        "sasl.oauthbearer.token.endpoint.url = 'http://login.example/token'",
    ] {
        for (table, more) in [
            ("source.kafka", KAFKA),
            ("handler.publish.kafka", "topic = 't'\nbrokers = ['kafka.example:9092']\n"),
            ("outbox.kafka", "brokers = ['127.0.0.1:1,kafka.example:9092']\n"),
        ] {
            let part = format!("[{table}]\n{more}[{table}.properties]\n{properties}\n");
            let key = match table {
                "source.kafka" => "source.kafka.properties",
                "outbox.kafka" => "outbox.kafka.properties",
                _ => "handler.publish.kafka.properties",
            };
            all.push((part, key));
        }
    }
    // A password alone means `sasl_ssl`.
    let blind = format!(
        "[source.kafka]\n{KAFKA}password = 'p'\n[source.kafka.properties]\nenable.ssl.certificate.verification = false\n"
    );
    all.push((blind, "source.kafka.properties"));
    all
}

#[test]
fn credentials_without_verified_tls_are_refused_for_other_hosts_unless_allowed() {
    for (part, key) in exposed() {
        let said = refusal(&with_part(&part));
        let table = key.rsplit_once('.').unwrap().0;
        assert!(said.contains(&format!(" {key}: ")), "{part}{said}");
        assert!(said.contains(&format!("allow_plaintext = true in [{table}]")), "{part}{said}");

        let header = format!("[{table}]\n");
        assert!(part.contains(&header), "{part}");
        let allowed = with_part(&part.replace(&header, &format!("{header}allow_plaintext = true\n")));
        let advice = parse(&allowed).advice();
        assert!(advice.iter().any(|advice| advice.key() == Some(key)), "it is said: {allowed}{advice:?}");
        // A permission for one table holds for no other.
        let elsewhere = part.replace(&header, &format!("{header}allow_plaintext = false\n"));
        refusal(&with_part(&elsewhere));
    }
}

#[test]
fn what_stays_on_this_machine_or_is_verified_is_accepted() {
    for part in [
        "[source.rabbitmq]\nurl = 'amqp://u:p@127.0.0.1/%2f'\nqueue = 'q'\n",
        "[source.rabbitmq]\nurl = 'amqp://u:p@localhost/%2f'\nqueue = 'q'\n",
        "[source.rabbitmq]\nurl = 'amqp://u:p@[::1]/%2f'\nqueue = 'q'\n",
        "[source.rabbitmq]\nurl = 'amqps://u:p@rabbit.example/%2f'\nqueue = 'q'\n",
        "[source.rabbitmq]\nurl = 'amqp://rabbit.example/%2f'\nqueue = 'q'\n",
        "[source.kafka]\nbrokers = ['localhost:9092']\ntopics = ['t']\ngroup = 'g'\nproperties.security.protocol = 'sasl_plaintext'\n",
        "[source.kafka]\nbrokers = ['kafka.example:9092']\ntopics = ['t']\ngroup = 'g'\nusername = 'u'\npassword = 'p'\n",
        "[source.kafka]\nbrokers = ['kafka.example:9092']\ntopics = ['t']\ngroup = 'g'\n",
        "[source.sqs]\nqueue_url = 'http://127.0.0.1:9324/1/q'\nendpoint = 'http://127.0.0.1:9324'\n",
        "[source.sqs]\nqueue_url = 'http://sqs.example/1/q'\nendpoint = 'https://sqs.example'\n",
        "[source.pubsub]\nsubscription = 's'\nproject = 'p'\nendpoint = 'http://127.0.0.1:8085'\n",
        "[source.pubsub]\nsubscription = 's'\nproject = 'p'\n",
        "[store.redis]\nurl = 'redis://redis.example'\n",
        "[store.redis]\nurl = 'redis://:p@127.0.0.1'\n",
        "[store.redis]\nurl = 'rediss://:p@redis.example'\n",
        "[store.redis]\nurl = 'redis://h'\ntopology = 'sentinel'\nprimary = 'm'\npassword = 'p'\nca_file = 'ca.pem'\n",
        "[store.postgres]\nurl = 'postgres://u:p@db.example/x'\n",
        "[store.postgres]\nurl = 'postgres://u:p@db.example/x?sslmode=verify-full'\n",
        "[store.postgres]\nurl = 'postgres://u:p@127.0.0.1/x?sslmode=disable'\n",
        "[store.postgres]\nurl = 'postgres://u:p@%2Fvar%2Frun%2Fpostgresql/x?sslmode=disable'\n",
        "[store.postgres]\nurl = 'postgres:///x?host=/var/run/postgresql&sslmode=disable'\n",
        "[handler.http]\nurl = 'http://127.0.0.1:8080/'\nheaders = { Authorization = 'x' }\n",
        "[handler.http]\nurl = 'https://hook.example/'\nheaders = { Authorization = 'x' }\n",
    ] {
        let config = parse(&with_part(part));
        let about_it: Vec<_> =
            config.advice().into_iter().filter(|a| a.to_string().contains("on the way")).collect();
        assert!(about_it.is_empty(), "{part}{about_it:?}");
    }
    let unnamed =
        parse(&with_part("[store.postgres]\nurl = 'postgres://u:p@db.example/x?sslmode=verify-ca'\n"))
            .advice();
    assert!(unnamed.iter().any(|advice| advice.key() == Some("store.postgres.url")), "{unnamed:?}");
}

#[test]
fn properties_that_load_or_run_code_are_refused_in_every_table() {
    let tables = [
        ("source.kafka", "topics = ['t']\ngroup = 'g'\n"),
        ("handler.publish.kafka", "topic = 't'\n"),
        ("outbox.kafka", ""),
    ];
    for (name, value) in [
        ("plugin.library.paths", "hunter2.so"),
        ("Plugin.Library.Paths", "hunter2.so"),
        (" plugin.library.paths ", "hunter2.so"),
        ("plugin_library_paths", "hunter2.so"),
        ("topic.plugin.library.paths", "hunter2.so"),
        ("sasl.kerberos.kinit.cmd", "hunter2"),
        ("ssl.engine.location", "hunter2"),
        ("ssl.engine.id", "hunter2"),
        ("ssl.providers", "hunter2"),
        ("ssl_engine_callback_data", "hunter2"),
        ("ssl.certificate.verify_cb", "hunter2"),
        ("log_cb", "hunter2"),
        ("oauthbearer_token_refresh_cb", "hunter2"),
        ("opaque", "hunter2"),
        ("interceptors", "hunter2"),
        ("sasl.kerberos.principal", "x; touch hunter2"),
        ("sasl.kerberos.keytab", "$(hunter2)"),
        ("sasl.kerberos.service.name", "`hunter2`"),
    ] {
        for (table, more) in tables {
            let part = format!(
                "[{table}]\nbrokers = ['127.0.0.1:1']\n{more}[{table}.properties]\n'{name}' = '{value}'\n"
            );
            let said = refusal(&with_part(&part));
            assert!(
                said.contains(&format!(": {table}.properties.")) && said.contains(name),
                "{name}: {said}"
            );
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
    let nested = "[source.kafka]\nbrokers = ['127.0.0.1:1']\ntopics = ['t']\ngroup = 'g'\nproperties.plugin.library.paths = 'x'\n";
    assert!(refusal(&with_part(nested)).contains("line 13: source.kafka.properties.plugin.library.paths: "));
    let harmless = "[source.kafka]\nbrokers = ['127.0.0.1:1']\ntopics = ['t']\ngroup = 'g'\n[source.kafka.properties]\n\
                    sasl.kerberos.principal = 'onceward/host@EXAMPLE.ORG'\nsasl.kerberos.keytab = '/etc/onceward.keytab'\n\
                    ssl.key.location = 'key.pem'\nssl.key.pem = 'x'\nssl.ca.location = 'ca.pem'\n";
    assert!(Config::parse(&with_part(harmless), &no_env).is_ok());
}
