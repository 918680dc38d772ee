//! Redis in the configuration of the `onceward` program: `[store.redis]`.

mod findings;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use onceward::Error;
use onceward_plugin::files::{certificates, password_in};
use onceward_plugin::value::{Address, Login};
use onceward_plugin::{
    Checked, Context, Exposure, LogRule, OpenStore, Purpose, Secrets, StoreFacts, StorePlugin, check, choice,
    table,
};

use crate::command::keyspace::Keyspace;
use crate::{RedisConfig, RedisLayout, RedisOptions, RedisStore};

pub use self::RedisTable as Store;
pub use findings::FINDINGS;

/// The log lines of the client library.
pub const LOG_RULES: &[LogRule] = &[LogRule::new("redis", "error")];

/// What this store can do, for the checks of other options.
pub const FACTS: StoreFacts =
    StoreFacts { is_transactional: false, has_single_writer: false, has_outbox: false, is_in_memory: false };

table! {
    /// Redis or Valkey, 6.2 or later.
    RedisTable [credentials, store] {
        /// The URL of the server: `redis://host:6379`, or `rediss://…` for TLS. With `topology`, one of the Sentinels or of
        /// the cluster's nodes.
        pub url: Address,
        /// How the servers are organised.
        #[serde(default)]
        pub topology: RedisTopology,
        /// Further Sentinels, or nodes of the cluster; a few suffice.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub nodes: Vec<Address>,
        /// The primary's name in the Sentinels' configuration.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub primary: Option<String>,
        /// How many replicas must have a write before it counts, from 0 to 100. It narrows the window in which a failover
        /// loses writes, and costs a round trip to the replicas.
        #[serde(default)]
        pub wait_replicas: u32,
        /// The prefix of all keys in Redis, at most 64 letters, digits and `: - _ .`
        #[serde(default = "default_prefix")]
        pub prefix: String,
        /// How completed keys are kept. Each process reads both layouts, so that it can be changed process by process, at any
        /// time; but all must be of a version that knows it before the first one writes compact records.
        #[serde(default)]
        pub layout: RedisLayoutOption,
        /// The certificates, PEM, of the authorities that may have signed the servers'; the system's by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ca_file: Option<PathBuf>,
        /// Allows a login to another host without TLS (redis:// with a password). Only for networks where no third party can
        /// read or answer.
        #[serde(default)]
        pub allow_plaintext: bool,
    }
}

fn default_prefix() -> String {
    RedisOptions::DEFAULT_PREFIX.to_owned()
}

choice! {
    /// How Redis servers are organised.
    RedisTopology {
        /// One server, or one address that always leads to the primary.
        #[default]
        Standalone,
        /// Sentinels know the primary.
        Sentinel,
        /// A cluster.
        Cluster,
    }
}

choice! {
    /// How Redis keeps completed keys.
    RedisLayoutOption {
        /// Each in a Redis key of its own, in 129 to 161 bytes.
        #[default]
        Plain,
        /// Many in one Redis key, in 20 to 24 bytes each. For scopes whose publishers are trusted: anyone who may publish and
        /// guesses a key can find a payload that passes for another's. Keys with a kept result or trace
        /// (`keep_trace_context`) stay plain. Not for clusters; lists of keys show the beginning of each key only.
        Compact,
    }
}

const SCHEMES: [&str; 4] = ["redis", "rediss", "valkey", "valkeys"];
const PLAINTEXT_SCHEMES: [&str; 2] = ["redis", "valkey"];

impl RedisTable {
    fn urls(&self) -> impl Iterator<Item = &Address> {
        [&self.url].into_iter().chain(&self.nodes)
    }

    fn is_sentinel(&self) -> bool {
        self.topology == RedisTopology::Sentinel
    }

    fn check_topology(&self, context: &Context<'_>) -> Checked {
        if !self.nodes.is_empty() && self.topology == RedisTopology::Standalone {
            return Err(context.problem(
                "nodes",
                "has no meaning for one server",
                r#"write topology = "cluster" or topology = "sentinel", or remove it"#,
            ));
        }
        match &self.primary {
            Some(primary) if self.is_sentinel() => check::text(context, "primary", primary),
            Some(_) => {
                let fix = r#"write topology = "sentinel", or remove it"#;
                Err(context.problem("primary", "has no meaning without Sentinels", fix))
            }
            None if self.is_sentinel() => Err(context.problem(
                "topology",
                "names Sentinels, but not the primary they monitor",
                r#"write primary = "…", the name in their "sentinel monitor""#,
            )),
            None => Ok(()),
        }
    }

    fn config(&self, context: &Context<'_>) -> Result<RedisConfig, Error> {
        let addresses = || self.urls().map(Address::expose);
        let mut config = match (self.topology, &self.primary) {
            (RedisTopology::Standalone, _) => RedisConfig::new(self.url.expose()),
            (RedisTopology::Cluster, _) => RedisConfig::cluster(addresses()),
            (RedisTopology::Sentinel, primary) => {
                RedisConfig::sentinel(addresses(), primary.as_deref().unwrap_or_default())
            }
        };
        let login = Login::read(context, self.credentials())?;
        config.endpoint.username = login.username;
        config.endpoint.password = login.password.map(|password| password.expose().to_owned());
        if let Some(file) = self.credentials().password_file {
            // Read before each new connection: it may have been replaced.
            let (path, table) = (context.resolve(file), context.table().to_owned());
            let read = move || Ok(password_in(&path, &table)?.expose().to_owned());
            config.endpoint.password_from = Some(Arc::new(read));
        }
        if let Some(file) = &self.ca_file {
            config.endpoint.ca = Some(certificates(context, "ca_file", file)?);
        }
        config.endpoint.allow_plaintext = self.allow_plaintext;
        // A little less than the limit of a call, so that the client's own error arrives first.
        let limit = self.timeout.get().mul_f64(0.9);
        config.options.prefix.clone_from(&self.prefix);
        config.options.connect_timeout = RedisOptions::DEFAULT_CONNECT_TIMEOUT.min(limit);
        config.options.response_timeout = limit;
        config.options.layout = match self.layout {
            RedisLayoutOption::Plain => RedisLayout::Plain,
            RedisLayoutOption::Compact => RedisLayout::Compact,
        };
        config.options.wait_replicas = self.wait_replicas;
        config.options.wait_timeout = RedisOptions::DEFAULT_WAIT_TIMEOUT.min(limit / 3);
        Ok(config)
    }
}

impl Secrets for RedisTable {
    fn exposure(&self) -> Option<Exposure> {
        let is_open = |url: &Address| check::is_remote(url, &PLAINTEXT_SCHEMES);
        let in_urls = self.urls().any(check::has_login) && self.urls().any(is_open);
        // Sentinels name the primary; it is reached with TLS where they are, or where its authority is given.
        let has_tls = self.is_sentinel()
            && (self.ca_file.is_some() || self.urls().any(|url| !url.has_scheme(&PLAINTEXT_SCHEMES)));
        let in_fields = self.credentials().is_given() && !has_tls && self.urls().any(is_open);
        (in_urls || in_fields).then_some(Exposure {
            option: "url",
            problem: "is redis:// on another host, so that the password could be read on the way",
            fix: "write rediss://, with the server's authority in ca_file if the system does not know it",
            is_allowed: self.allow_plaintext,
        })
    }

    fn secret_files(&self, context: &Context<'_>) -> Vec<(String, PathBuf)> {
        self.credentials().secret_file(context).into_iter().collect()
    }
}

#[async_trait]
impl StorePlugin for RedisTable {
    fn describe(&self, _: &Context<'_>) -> String {
        self.url.redacted()
    }

    fn facts(&self) -> StoreFacts {
        FACTS
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        check::url(context, "url", &self.url, &SCHEMES)?;
        for (index, node) in self.nodes.iter().enumerate() {
            check::url(context, &format!("nodes[{index}]"), node, &SCHEMES)?;
        }
        self.check_topology(context)?;
        if self.layout == RedisLayoutOption::Compact && self.topology == RedisTopology::Cluster {
            let fix = r#"write layout = "plain", or remove it"#;
            return Err(context.problem("layout", "is not for clusters", fix));
        }
        check::within(context, "wait_replicas", self.wait_replicas, RedisOptions::WAIT_REPLICAS)?;
        if Keyspace::new(&self.prefix).is_err() {
            let fix = "write 1 to 64 letters, digits and `: - _ .`";
            return Err(context.problem("prefix", "is not a prefix for keys of Redis", fix));
        }
        // The URLs of Sentinels hold the login for them, the fields the one for the primary.
        let url = Some(&self.url).filter(|_| !self.is_sentinel());
        check::credentials(context, self.credentials(), url)
    }

    async fn open(&self, context: &Context<'_>, _: Purpose) -> Result<OpenStore, Error> {
        let store = Arc::new(RedisStore::open(self.config(context)?)?);
        Ok(OpenStore {
            store: store.clone(),
            checkpoints: store.clone(),
            audit: Some(store),
            statements: None,
            outbox: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use onceward_plugin::documentation::{SharedOption, assert_documented};

    use super::*;

    #[test]
    fn table_and_struct_document_the_ranges_and_defaults_of_the_code() {
        let replicas = RedisOptions::WAIT_REPLICAS;
        assert_documented::<RedisTable>(
            include_str!("../config.rs"),
            &[
                SharedOption {
                    option: "wait_replicas",
                    field: "wait_replicas",
                    range: Some(format!("from {} to {}", replicas.start(), replicas.end())),
                    default: Some(RedisOptions::default().wait_replicas.to_string()),
                },
                SharedOption {
                    option: "prefix",
                    field: "prefix",
                    range: Some("64 letters, digits and `: - _ .`".to_owned()),
                    default: Some(format!("{:?}", default_prefix())),
                },
            ],
        );
    }
}
