//! `[store.*]`: where keys are remembered.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::address::Address;
use super::table::{StoreLimits, choice, table};

/// Where keys are remembered: exactly one of these tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// Redis or Valkey.
    Redis(RedisStore),
    /// PostgreSQL.
    Postgres(PostgresStore),
    /// One SQLite file on this host.
    Sqlite(SqliteStore),
    /// The memory of this process: for trials only.
    Memory(MemoryStore),
}

impl Store {
    /// The name of the table: `redis`, `postgres`, `sqlite` or `memory`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Redis(_) => "redis",
            Self::Postgres(_) => "postgres",
            Self::Sqlite(_) => "sqlite",
            Self::Memory(_) => "memory",
        }
    }

    /// The limits that every store keeps.
    pub fn limits(&self) -> StoreLimits {
        match self {
            Self::Redis(store) => store.limits(),
            Self::Postgres(store) => store.limits(),
            Self::Sqlite(store) => store.limits(),
            Self::Memory(store) => store.limits(),
        }
    }

    /// True where a handler's own changes can commit together with the completion.
    pub fn is_transactional(&self) -> bool {
        match self {
            Self::Postgres(_) | Self::Sqlite(_) => true,
            Self::Redis(_) | Self::Memory(_) => false,
        }
    }
}

table! {
    /// Redis or Valkey, 6.2 or later.
    RedisStore [credentials, store] {
        /// Where the server is: `redis://host:6379`, or `rediss://…` for TLS. With `topology`, one of the Sentinels or of
        /// the cluster's nodes.
        pub url: Address,
        /// How the servers belong together.
        #[serde(default)]
        pub topology: RedisTopology,
        /// Further Sentinels, or nodes of the cluster; a few suffice.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub nodes: Vec<Address>,
        /// The primary's name in the Sentinels' configuration.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub primary: Option<String>,
        /// How many replicas must have a write before it counts, from 0 to 100. It narrows the window in which a failover
        /// forgets, and costs a round trip to the replicas.
        #[serde(default)]
        pub wait_replicas: u32,
        /// What all keys in Redis begin with, at most 64 letters, digits and `: - _ .`
        #[serde(default = "default_prefix")]
        pub prefix: String,
        /// The certificates, PEM, of the authorities that may have signed the servers'; the system's where it is left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ca_file: Option<PathBuf>,
        /// True lets the login go readably, or to whoever answers, to another host than this: redis:// with a password. Only
        /// for networks where nobody else can be.
        #[serde(default)]
        pub allow_plaintext: bool,
    }
}

fn default_prefix() -> String {
    "ow".to_owned()
}

choice! {
    /// How Redis servers belong together.
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

table! {
    /// PostgreSQL, 13 or later.
    PostgresStore [credentials, store] {
        /// Where the server is: `postgres://user@host/database`. On another host than this it is verified
        /// (`sslmode=verify-full`) where the URL says nothing.
        pub url: Address,
        /// The schema that holds Onceward's tables, apart from the application's.
        #[serde(default = "default_schema")]
        pub schema: String,
        /// How many connections the transactions of `[handler.sql]` use at most, from 1 to 1000; each holds one while it
        /// runs. The store has a few more of its own.
        #[serde(default = "super::table::count::<16>")]
        pub connections: u32,
        /// The certificates, PEM, of the authorities that may have signed the server's; the system's where it is left
        /// out. With it the server is verified, unless the URL says `sslmode=verify-ca`, by its name as well.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ca_file: Option<PathBuf>,
        /// True lets the login go readably, or to whoever answers, to another host than this: an sslmode
        /// that does not verify the server. Only
        /// for networks where nobody else can be.
        #[serde(default)]
        pub allow_plaintext: bool,
    }
}

fn default_schema() -> String {
    "onceward".to_owned()
}

table! {
    /// One SQLite file on this host.
    SqliteStore [store] {
        /// The database file; created when it is absent, in a directory that exists. A relative path starts from the
        /// directory of the configuration file.
        pub path: PathBuf,
    }
}

table! {
    /// The memory of this process. Nothing is remembered after it ends: for trials only.
    MemoryStore [store] {}
}
