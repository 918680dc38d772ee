//! A planted password is never printed.

use onceward_cli::config::{Config, ConfigError};

use crate::examples::{CONTRACT, no_env};

/// A password that must not be printed, even in errors.
const CANARY: &str = "hunter2canary";

/// Every place where a secret may stand, with `SECRET` for it.
const SECRET_PLACES: [&str; 28] = [
    "[source.rabbitmq]\nurl = 'amqps://u:SECRET@h/%2f'\nqueue = 'q'\n",
    "[source.rabbitmq]\nurl = 'amqps://h/%2f?token=SECRET'\nqueue = 'q'\n",
    "[source.rabbitmq]\nurl = 'amqps://h'\nqueue = 'q'\npassword = 'SECRET'\n",
    "[source.kafka]\nbrokers = ['SECRET@h:1']\ntopics = ['t']\ngroup = 'g'\n",
    "[source.kafka]\nbrokers = ['h:1']\ntopics = ['t']\ngroup = 'g'\npassword = 'SECRET'\n",
    "[source.kafka]\nbrokers = ['h:1']\ntopics = ['t']\ngroup = 'g'\nproperties = { 'sasl.password' = 'SECRET' }\n",
    "[source.kafka]\nbrokers = ['h:1']\ntopics = ['t']\ngroup = 'g'\n[source.kafka.properties]\nssl.key.pem = 'SECRET'\n",
    "[source.sqs]\nqueue_url = 'https://u:SECRET@h/q'\n",
    "[source.sqs]\nqueue_url = 'https://h/q?X-Amz-Signature=SECRET'\n",
    "[source.sqs]\nqueue_url = 'https://h/q'\nendpoint = 'https://SECRET@h'\n",
    "[source.sqs]\nqueue_url = 'https://h/q'\nendpoint = 'https://h/SECRET'\n",
    "[source.pubsub]\nsubscription = 's'\nproject = 'p'\nendpoint = 'https://SECRET@h'\n",
    "[store.redis]\nurl = 'rediss://:SECRET@h:6379/0'\n",
    "[store.redis]\nurl = 'redis://h:6379/0?pass=SECRET'\n",
    "[store.redis]\nurl = 'redis://h:6379'\ntopology = 'cluster'\nnodes = ['redis://u:SECRET@h2:6379']\nallow_plaintext = true\n",
    "[store.redis]\nurl = 'rediss://h'\npassword = 'SECRET'\n",
    "[store.postgres]\nurl = 'postgres://u:SECRET@h/db?sslmode=verify-full'\n",
    "[store.postgres]\nurl = 'postgres://h/db?password=SECRET'\n",
    "[store.postgres]\nurl = 'postgres://h/db'\npassword = 'SECRET'\n",
    "[handler.http]\nurl = 'https://u:SECRET@h/hook'\n",
    "[handler.http]\nurl = 'https://h/hook?SECRET'\n",
    "[handler.http]\nurl = 'https://h/hook'\nheaders = { Authorization = 'Bearer SECRET' }\n",
    "[handler.exec]\ncommand = ['curl', 'https://u:SECRET@h/hook']\n",
    "[handler.publish.rabbitmq]\nurl = 'amqps://u:SECRET@h'\nrouting_key = 'k'\n",
    "[handler.publish.kafka]\nbrokers = ['h:1']\ntopic = 't'\npassword = 'SECRET'\n",
    "[dead_letter]\nto = 'https://u:SECRET@h/dlq'\n",
    "[telemetry]\nlisten = '127.0.0.1:1'\ntoken = 'SECRET-of-16-bytes'\n",
    "[telemetry]\notlp = 'https://u:SECRET@h/v1?key=SECRET'\n",
];

/// A whole configuration with the tables of `part` in the place of the usual ones.
fn with_part(part: &str) -> String {
    let mut source = String::from("scope = 'a'\n");
    for (table, usual) in [
        ("[source.", "[source.file]\npath = '-'\n"),
        ("[store.", "[store.memory]\n"),
        ("[handler.", "[handler.stdout]\n"),
        ("[dead_letter]", "[dead_letter]\nto = 'd'\n"),
    ] {
        if !part.starts_with(table) {
            source.push_str(usual);
        }
    }
    source + "[key]\nfrom = ['json:/id']\n" + part
}

/// All that may be printed about a configuration, whether it is accepted or refused.
pub(crate) fn everything_printed(result: Result<Config, ConfigError>) -> String {
    match result {
        Ok(config) => {
            let shown = config.to_toml().expect("a checked configuration shows as TOML");
            let advice: Vec<_> = config.advice().iter().map(ToString::to_string).collect();
            let later = config.refuse("store.redis.url", "cannot be reached", "start it");
            format!("{config:?}\n{config:#?}\n{shown}\n{advice:?}\n{later}\n{later:?}")
        }
        Err(error) => format!("{error}\n{error:?}\n{error:#?}"),
    }
}

#[test]
fn a_planted_password_is_never_printed() {
    for place in SECRET_PLACES {
        let config = Config::parse(&with_part(&place.replace("SECRET", CANARY)), &no_env);
        assert!(config.is_ok(), "{place}: {config:?}");
        let printed = everything_printed(config);
        assert!(!printed.contains(CANARY), "{place}\n{printed}");
        assert!(printed.contains("***"), "{place}\n{printed}");

        let env = |name: &str| (name == "PASSWORD").then(|| CANARY.to_owned());
        let config = Config::parse(&with_part(&place.replace("SECRET", "${PASSWORD}")), &env);
        assert!(config.is_ok(), "{place}: {config:?}");
        assert!(!everything_printed(config).contains(CANARY), "{place}");
    }
}

/// Nothing in the text of a command or a statement marks a password. The value of a variable may be one.
#[test]
fn commands_and_statements_are_shown_with_their_variables() {
    let env = |name: &str| (name == "PASSWORD").then(|| CANARY.to_owned());
    for (part, shown) in [
        ("[handler.exec]\ncommand = ['mysql', '-p${PASSWORD}', '$${x}']\n", "-p${PASSWORD}"),
        ("[handler.worker]\ncommand = ['./w', '${PASSWORD}']\n", "\"${PASSWORD}\""),
        (
            "[handler.sql]\nstatement = \"INSERT INTO t VALUES ('${PASSWORD}')\"\n[store.sqlite]\npath = 'x.db'\nlease = '1m'\n",
            "('${PASSWORD}')",
        ),
    ] {
        let mut source = with_part(part);
        if part.contains("[store.") {
            source = source.replace("[store.memory]\n", "");
        }
        let config = Config::parse(&source, &env).unwrap();
        let toml = config.to_toml().unwrap();
        assert!(toml.contains(shown) && !toml.contains(CANARY), "{toml}");
        let again = Config::parse(&toml, &env).unwrap();
        assert_eq!(again.handler, config.handler, "it reads again as the same");
    }
}

#[test]
fn a_password_in_a_wrong_place_is_never_printed() {
    let quoted = format!("'{CANARY}'");
    for line in CONTRACT.lines().filter(|line| line.contains(" = ")) {
        let (name, _) = line.split_once(" = ").unwrap();
        for wrong in [
            quoted.as_str(),
            CANARY,
            &format!("[{quoted}]"),
            &format!("{{ x = {quoted} }}"),
            &format!("'a{CANARY}"),
        ] {
            let source = CONTRACT.replace(line, &format!("{name} = {wrong}"));
            let printed = match Config::parse(&source, &no_env) {
                // A name is no secret: a scope or queue of that name is shown.
                Ok(_) if ["scope", "queue", "to", "url"].contains(&name) => continue,
                result => everything_printed(result),
            };
            assert!(!printed.contains(CANARY), "{name} = {wrong}\n{printed}");
        }
    }
}

mod whatever_surrounds_it {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Passwords with characters that break URLs, quotes and TOML itself.
        #[test]
        fn a_password_is_never_printed(place in 0..SECRET_PLACES.len(), before in "[ -~]{0,6}", after in "[ -~]{0,6}") {
            let password = format!("{before}{CANARY}{after}");
            let source = with_part(&SECRET_PLACES[place].replace("SECRET", &password));
            let printed = everything_printed(Config::parse(&source, &no_env));
            prop_assert!(!printed.contains(CANARY), "{source}\n{printed}");

            let env = |_: &str| Some(password.clone());
            let source = with_part(&SECRET_PLACES[place].replace("SECRET", "${PASSWORD}"));
            let printed = everything_printed(Config::parse(&source, &env));
            prop_assert!(!printed.contains(CANARY), "{source}\n{printed}");
        }

        /// Text that is hardly TOML never panics the parser, and its error is one line.
        #[test]
        fn any_text_gets_one_sentence(at in 0..CONTRACT.len(), noise in "[\\[\\]='\"${}a-z0-9\n.# ]{0,8}") {
            let at = (0..=at).rev().find(|at| CONTRACT.is_char_boundary(*at)).unwrap_or_default();
            let source = format!("{}{noise}{}", &CONTRACT[..at], &CONTRACT[at..]);
            if let Err(error) = Config::parse(&source, &no_env) {
                prop_assert!(!error.to_string().contains('\n'), "{error}");
                prop_assert!(error.line().is_some());
            }
        }
    }
}

/// The program warns of those that everybody may read.
#[test]
fn every_file_with_a_secret_is_known_under_the_option_that_names_it() {
    let with = |table: &str, options: &str| {
        let tables = match table.split('.').next() {
            Some("source") => "[store.memory]\n[handler.stdout]\n",
            Some("store") => "[source.file]\npath = '-'\n[handler.stdout]\n",
            Some("handler") => "[source.file]\npath = '-'\n[store.memory]\n",
            _ => "[source.file]\npath = '-'\n[store.sqlite]\npath = 'x'\n[handler.stdout]\n",
        };
        let key = "[key]\nfrom = ['message-id']\n[dead_letter]\nto = 'd'\n";
        format!("scope = 'a'\n{tables}{key}[{table}]\n{options}")
    };
    for (table, options, key) in [
        ("source.rabbitmq", "url = 'amqps://h'\nqueue = 'q'\npassword_file = '/k'\n", "password_file"),
        ("store.redis", "url = 'rediss://h'\npassword_file = '/k'\n", "password_file"),
        ("store.postgres", "url = 'postgres://h/x'\npassword_file = '/k'\n", "password_file"),
        ("store.postgres", "url = 'postgres://h/x?sslkey=/k'\n", "url"),
        ("handler.publish.kafka", "brokers = ['h:1']\ntopic = 't'\npassword_file = '/k'\n", "password_file"),
        ("outbox.kafka", "brokers = ['h:1']\nproperties.ssl.key.location = '/k'\n", "properties"),
        ("outbox.rabbitmq", "url = 'amqps://h'\npassword_file = '/k'\n", "password_file"),
        ("telemetry", "listen = '127.0.0.1:1'\ntoken_file = '/k'\n", "token_file"),
    ] {
        let text = with(table, options);
        let config = Config::parse(&text, &no_env).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(config.secret_files(), [(format!("{table}.{key}"), "/k".into())], "{text}");
    }
}
