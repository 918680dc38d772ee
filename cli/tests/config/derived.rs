//! Defaults that follow from what is written.

use std::time::Duration;

use onceward_cli::config::{Handler, OrderBy, Ordering, Source};

use crate::examples::parse;

const KAFKA: &str = "scope = 'a'\n[source.kafka]\nbrokers = ['h:1']\ntopics = ['t']\ngroup = 'g'\n[handler.stdout]\n\
                     [dead_letter]\nto = 'd'\n";
const FILE: &str =
    "scope = 'a'\n[source.file]\npath = 'x'\n[key]\nfrom = ['json:/id']\n[dead_letter]\nto = 'd'\n";

/// Every duration and number that may be written is written alone, at both ends of its range: no default is in its way.
#[test]
fn a_single_written_value_never_contradicts_a_default() {
    let file = |tables: &str| format!("{FILE}{tables}");
    let memory = "[store.memory]\n";
    let stdout = "[handler.stdout]\n";
    let mut texts = Vec::new();
    for value in [
        "ttl = '1s'",
        "ttl = '3650d'",
        "lease = '100ms'",
        "lease = '12h'",
        "timeout = '1ms'",
        "timeout = '10m'",
    ] {
        texts.push(file(&format!("{memory}{value}\n{stdout}")));
        texts.push(file(&format!(
            "[store.sqlite]\npath = 's'\n{value}\n[handler.sql]\nstatement = 'select 1'\n"
        )));
    }
    for value in ["timeout = '1ms'", "timeout = '5h'", "batch = 1000", "batch = 1"] {
        texts.push(file(&format!(
            "[store.sqlite]\npath = 's'\n[handler.sql]\nstatement = 'select 1'\n{value}\n"
        )));
    }
    for value in [
        "concurrency = 1",
        "concurrency = 65536",
        "max_in_flight = 1",
        "max_in_flight = 1048576",
        "max_batch = 1",
        "max_batch = 4096",
        "max_in_flight_bytes = 1",
        "drain_timeout = '0s'",
        "drain_timeout = '1h'",
    ] {
        texts.push(file(&format!("{memory}{stdout}[pipeline]\n{value}\n")));
        texts.push(format!("{KAFKA}{memory}[pipeline]\n{value}\n"));
        texts.push(file(&format!(
            "[store.sqlite]\npath = 's'\n[handler.sql]\nstatement = 'select 1'\n[pipeline]\n{value}\n"
        )));
    }
    for value in ["initial = '1ms'", "initial = '24h'", "max = '1ms'", "max = '24h'", "max_attempts = 10000"]
    {
        texts.push(file(&format!("{memory}{stdout}[retry]\n{value}\n")));
    }
    for value in ["session.timeout.ms = 6000", "session.timeout.ms = 1800000", "max.poll.interval.ms = 10000"]
    {
        texts.push(format!("{KAFKA}{memory}[source.kafka.properties]\n{value}\n"));
    }
    texts.push(
        file(&format!("{memory}{stdout}")).replace("path = 'x'", "path = 'x'\nmax_message_bytes = '1GiB'"),
    );
    for text in texts {
        let _ = parse(&text);
    }
}

#[test]
fn what_is_written_stays_as_it_is_written() {
    let config = parse(&format!("{FILE}[store.memory]\nlease = '4s'\n[handler.stdout]\n"));
    let limits = config.limits();
    assert_eq!(limits.lease.get(), Duration::from_secs(4));
    assert!(limits.timeout < limits.lease);
    let config = parse(&format!("{FILE}[store.memory]\ntimeout = '40s'\n[handler.stdout]\n"));
    assert_eq!(config.limits().timeout.get(), Duration::from_secs(40));
    assert!(config.limits().lease > config.limits().timeout);
    let sql = "[store.sqlite]\npath = 's'\n[handler.sql]\nstatement = 'select 1'\ntimeout = '5m'\n";
    let config = parse(&format!("{FILE}{sql}"));
    assert_eq!(config.handler.timeout().get(), Duration::from_secs(300));
    assert!(config.limits().lease > config.handler.timeout());
    let sql = "[store.sqlite]\npath = 's'\n[handler.sql]\nstatement = 'select 1'\nbatch = 400\n";
    let config = parse(&format!("{FILE}{sql}"));
    assert!(matches!(&config.handler, Handler::Sql(sql) if sql.batch == 400));
    assert!(config.pipeline.concurrency >= 400 && config.pipeline.max_batch >= 400);
}

/// A member that drains goes on polling: neither its session nor its poll interval bounds a drain, and a drain changes neither.
#[test]
fn how_long_a_drain_may_take_and_kafkas_timeouts_do_not_touch_each_other() {
    for (properties, drain) in [
        ("session.timeout.ms = 6000", "1h"),
        ("max.poll.interval.ms = 10000", "50s"),
        ("session.timeout.ms = 1800000", "1s"),
        ("session.timeout.ms = 10000\nmax.poll.interval.ms = 10000", "5m"),
    ] {
        let tables = format!("{KAFKA}[store.memory]\n[source.kafka.properties]\n{properties}\n");
        let config = parse(&tables);
        assert_eq!(config.pipeline.drain_timeout.get(), Duration::from_secs(25), "{properties}");
        let config = parse(&format!("{tables}[pipeline]\ndrain_timeout = '{drain}'\n"));
        assert_eq!(config.pipeline.drain_timeout, drain.parse().unwrap());
        let Source::Kafka(kafka) = &config.source else { panic!("{config:?}") };
        assert_eq!(kafka.properties.expose().count(), properties.lines().count());
    }
}

#[test]
fn order_by_key_is_by_the_brokers_own_where_it_has_one() {
    let config = parse(&format!("{KAFKA}[store.memory]\n[pipeline]\nordering = 'key'\n"));
    assert_eq!(config.pipeline.order_by, Some(OrderBy::Broker));
    let config = parse(&format!("{KAFKA}[store.memory]\n[pipeline]\norder_by = 'json:/c'\n"));
    assert_eq!(config.ordering(), Ordering::Key);
    let retries = KAFKA.replace("group = 'g'\n", "group = 'g'\nretry_topics = { 't.retry' = '10s' }\n");
    let key = "[key]\nfrom = ['json:/id']\n";
    assert_eq!(parse(&format!("{retries}[store.memory]\n{key}")).ordering(), Ordering::None);
}
