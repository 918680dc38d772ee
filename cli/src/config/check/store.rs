//! Checks `[store.*]`.

use super::{Checked, MILLISECOND, credentials, duration, text, url, within};
use crate::config::{Config, HumanDuration, RedisStore, RedisTopology, Store};

const SECOND: HumanDuration = HumanDuration::from_secs(1);
const TEN_YEARS: HumanDuration = HumanDuration::from_secs(3_650 * 86_400);
const LEAST_LEASE: HumanDuration = HumanDuration::from_millis(100);
const MOST_LEASE: HumanDuration = HumanDuration::from_secs(12 * 3_600);
const MOST_TIMEOUT: HumanDuration = HumanDuration::from_secs(600);

const REDIS_SCHEMES: [&str; 4] = ["redis", "rediss", "valkey", "valkeys"];

/// Postgres cuts longer names without a word.
const MAX_IDENTIFIER_BYTES: usize = 63;

pub(super) fn check(config: &Config) -> Checked {
    match &config.store {
        Store::Redis(store) => redis(config, store)?,
        Store::Postgres(store) => {
            url(config, "store.postgres.url", &store.url, &["postgres", "postgresql"])?;
            credentials(config, "store.postgres", store.credentials(), Some(&store.url))?;
            schema_name(config, &store.schema)?;
            within(config, "store.postgres.connections", store.connections, 1..=1_000)?;
        }
        Store::Sqlite(store) => {
            let path = store.path.to_string_lossy();
            text(config, "store.sqlite.path", &path)?;
            if path == ":memory:" {
                return Err(config.refuse(
                    "store.sqlite.path",
                    "is a database in memory, of which each connection would see another",
                    "write a file's path, or use [store.memory] for a trial",
                ));
            }
        }
        Store::Memory(_) => {}
    }
    limits(config)
}

fn redis(config: &Config, store: &RedisStore) -> Checked {
    url(config, "store.redis.url", &store.url, &REDIS_SCHEMES)?;
    for (index, node) in store.nodes.iter().enumerate() {
        url(config, &format!("store.redis.nodes[{index}]"), node, &REDIS_SCHEMES)?;
    }
    let is_sentinel = store.topology == RedisTopology::Sentinel;
    if !store.nodes.is_empty() && store.topology == RedisTopology::Standalone {
        return Err(config.refuse(
            "store.redis.nodes",
            "has no meaning for one server",
            r#"write topology = "cluster" or topology = "sentinel", or remove it"#,
        ));
    }
    match &store.primary {
        Some(primary) if is_sentinel => text(config, "store.redis.primary", primary)?,
        Some(_) => {
            let fix = r#"write topology = "sentinel", or remove it"#;
            return Err(config.refuse("store.redis.primary", "has no meaning without Sentinels", fix));
        }
        None if is_sentinel => {
            return Err(config.refuse(
                "store.redis.topology",
                "names Sentinels, but not the primary they watch",
                r#"write primary = "…", the name in their "sentinel monitor""#,
            ));
        }
        None => {}
    }
    within(config, "store.redis.wait_replicas", store.wait_replicas, 0..=100)?;
    // The URLs of Sentinels hold the login for them, the fields the one for the primary.
    credentials(config, "store.redis", store.credentials(), Some(&store.url).filter(|_| !is_sentinel))
}

fn schema_name(config: &Config, name: &str) -> Checked {
    let first_fits = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let rest_fits = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if first_fits && rest_fits && name.len() <= MAX_IDENTIFIER_BYTES && !name.starts_with("pg_") {
        return Ok(());
    }
    Err(config.refuse(
        "store.postgres.schema",
        "is not a plain schema name",
        format!("write at most {MAX_IDENTIFIER_BYTES} of a-z, 0-9 and _, not starting with a digit or pg_"),
    ))
}

fn limits(config: &Config) -> Checked {
    let table = format!("store.{}", config.store.name());
    let (ttl, lease, timeout) =
        (format!("{table}.ttl"), format!("{table}.lease"), format!("{table}.timeout"));
    let limits = config.store.limits();
    duration(config, &ttl, limits.ttl, SECOND, TEN_YEARS)?;
    duration(config, &lease, limits.lease, LEAST_LEASE, MOST_LEASE)?;
    duration(config, &timeout, limits.timeout, MILLISECOND, MOST_TIMEOUT)?;
    if limits.timeout >= limits.lease {
        return Err(config.refuse(
            &timeout,
            format!("is not shorter than {lease}, so a claim could run out before its answer comes"),
            "lower timeout or raise lease",
        ));
    }
    if limits.ttl < limits.lease {
        return Err(config.refuse(
            &ttl,
            format!("is shorter than {lease}, so a key would be forgotten sooner than its claim"),
            "raise ttl, which has to cover every later delivery of the same message",
        ));
    }
    Ok(())
}
