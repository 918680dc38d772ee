//! `[store.postgres]`.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use onceward::Error;
use onceward::adapter::is_local_host;
use onceward_plugin::files::{certificates, password_in};
use onceward_plugin::value::{Address, Login};
use onceward_plugin::{
    Checked, Context, Exposure, Finding, OpenStore, Purpose, Secrets, StoreFacts, StorePlugin, check, table,
};
use url::Url;

use super::statements::Statements;
use crate::config::is_identifier;
use crate::{PgConfig, PgOptions, PgStore};

/// What this store can do, for the checks of other options.
pub const FACTS: StoreFacts =
    StoreFacts { is_transactional: true, has_single_writer: false, has_outbox: true, is_in_memory: false };

table! {
    /// PostgreSQL, 13 or later.
    PostgresTable [credentials, store] {
        /// The URL of the server: `postgres://user@host/database`. On another host its certificate is verified
        /// (`sslmode=verify-full`) where the URL says nothing.
        pub url: Address,
        /// The schema that holds Onceward's tables, apart from the application's.
        #[serde(default = "default_schema")]
        pub schema: String,
        /// How many connections the transactions of `[handler.sql]` use at most, from 1 to 1000; each holds one while it
        /// runs. The store has a few more of its own.
        #[serde(default = "::onceward_plugin::default::count::<16>")]
        pub connections: u32,
        /// The certificates, PEM, of the authorities that may have signed the server's; the system's by default. With it the
        /// server is verified, and by its name as well unless the URL says `sslmode=verify-ca`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ca_file: Option<PathBuf>,
        /// Allows a login to another host with an sslmode that does not verify the server. Only for networks where no third
        /// party can read or answer.
        #[serde(default)]
        pub allow_plaintext: bool,
    }
}

fn default_schema() -> String {
    PgOptions::DEFAULT_SCHEMA.to_owned()
}

impl PostgresTable {
    fn config(&self, context: &Context<'_>) -> Result<PgConfig, Error> {
        let mut config = PgConfig::new(self.url.expose());
        let login = Login::read(context, self.credentials())?;
        config.endpoint.username = login.username;
        config.endpoint.password = login.password.map(|password| password.expose().to_owned());
        if let Some(file) = self.credentials().password_file {
            // Read for each new connection: it may have been replaced.
            let (path, table) = (context.resolve(file), context.table().to_owned());
            let source = move || Ok(password_in(&path, &table)?.expose().to_owned());
            config.endpoint.password_from = Some(Arc::new(source));
        }
        if let Some(file) = &self.ca_file {
            config.endpoint.ca = Some(certificates(context, "ca_file", file)?);
        }
        config.endpoint.allow_plaintext = self.allow_plaintext;
        // A little less than the limit of a call, so that the client's own error arrives first.
        let limit = self.timeout.get().mul_f64(0.9);
        config.options.schema.clone_from(&self.schema);
        config.options.statement_timeout = limit;
        config.options.lock_timeout = PgOptions::DEFAULT_LOCK_TIMEOUT.min(limit / 4);
        config.options.connect_timeout = limit;
        config.options.handler_connections = Some(self.connections);
        if context.handler.is_transactional {
            config.options.handler_statement_timeout = Some(context.handler.timeout);
        }
        Ok(config)
    }

    fn check_schema(&self, context: &Context<'_>) -> Checked {
        // Postgres keeps names that begin with pg_ for itself.
        if is_identifier(&self.schema) && !self.schema.starts_with("pg_") {
            return Ok(());
        }
        Err(context.problem(
            "schema",
            "is not a plain schema name",
            "write at most 63 of a-z, 0-9 and _, not starting with a digit or pg_",
        ))
    }

    /// It accepts the certificate of any host that the authority has signed one for.
    fn unnamed_server(&self, context: &Context<'_>) -> Option<Finding> {
        let url = Url::parse(self.url.expose()).ok()?;
        let mut modes = url.query_pairs().filter(|(name, _)| matches!(&**name, "sslmode" | "ssl-mode"));
        modes.any(|(_, mode)| mode.eq_ignore_ascii_case("verify-ca")).then(|| {
            context.problem(
                "url",
                "has sslmode=verify-ca, which accepts every server that the same authority has signed for",
                "write sslmode=verify-full, unless the authority is for this server alone",
            ).into_warning("postgres-server-name-unchecked")
        })
    }

    fn few_connections(&self, context: &Context<'_>) -> Option<Finding> {
        let is_short = (self.connections as usize) < context.pipeline.concurrency;
        (context.handler.is_transactional && is_short).then(|| {
            context.problem(
                "connections",
                "is less than pipeline.concurrency, so that statements wait for a connection under their claim",
                "raise connections or lower concurrency",
            ).into_warning("postgres-few-connections")
        })
    }
}

impl Secrets for PostgresTable {
    /// Where the URL says nothing, the server is verified; `verify-ca` verifies it apart from its name.
    fn exposure(&self) -> Option<Exposure> {
        let url = Url::parse(self.url.expose()).ok()?;
        let decoded = |host: &str| {
            if host.to_ascii_lowercase().starts_with("%2f") { "/".to_owned() } else { host.to_owned() }
        };
        let in_query = |wanted: &[&str]| {
            let found: Vec<_> = url.query_pairs().filter(|(name, _)| wanted.contains(&&**name)).collect();
            found.into_iter().map(|(_, value)| value.into_owned()).collect::<Vec<_>>()
        };
        // An address without a host is that of a socket, or of the environment, which the adapter checks.
        let hosts = url.host_str().filter(|host| !host.is_empty()).map(decoded);
        let mut hosts = hosts.into_iter().chain(in_query(&["host", "hostaddr"]));
        let is_local = hosts.all(|host| is_local_host(&host));
        let mode = in_query(&["sslmode", "ssl-mode"]).pop()?.to_ascii_lowercase();
        // A certificate authority in `ca_file` makes it verify-full.
        let is_verified = matches!(&*mode, "verify-full" | "verify-ca") || self.ca_file.is_some();
        (!is_local && !is_verified).then_some(Exposure {
            option: "url",
            problem: "has an sslmode that does not verify the server on another host, so that anybody on the way could take the \
                      password, or answer in its place",
            fix: "remove sslmode or write verify-full, with the server's authority in ca_file if the system does not know it",
            is_allowed: self.allow_plaintext,
        })
    }

    fn secret_files(&self, context: &Context<'_>) -> Vec<(String, PathBuf)> {
        let mut files: Vec<_> = self.credentials().secret_file(context).into_iter().collect();
        if let Ok(url) = Url::parse(self.url.expose()) {
            let keys = url.query_pairs().filter(|(name, _)| matches!(&**name, "sslkey" | "ssl-key"));
            files.extend(keys.map(|(_, file)| (context.key("url"), PathBuf::from(&*file))));
        }
        files
    }
}

#[async_trait]
impl StorePlugin for PostgresTable {
    fn describe(&self, _: &Context<'_>) -> String {
        self.url.redacted()
    }

    fn facts(&self) -> StoreFacts {
        FACTS
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        check::url(context, "url", &self.url, &["postgres", "postgresql"])?;
        check::credentials(context, self.credentials(), Some(&self.url))?;
        self.check_schema(context)?;
        check::within(context, "connections", self.connections, PgOptions::CONNECTIONS)
    }

    fn advice(&self, context: &Context<'_>) -> Vec<Finding> {
        self.few_connections(context).into_iter().chain(self.unnamed_server(context)).collect()
    }

    async fn open(&self, context: &Context<'_>, purpose: Purpose) -> Result<OpenStore, Error> {
        let mut config = self.config(context)?;
        config.options.migrate = purpose == Purpose::Run;
        let store = Arc::new(PgStore::open(config).await?);
        Ok(OpenStore {
            store: store.clone(),
            checkpoints: store.clone(),
            audit: Some(store.clone()),
            outbox: Some(Box::new(store.outbox())),
            statements: Some(Arc::new(Statements(store))),
        })
    }

    async fn inspect(&self, context: &Context<'_>) -> Result<Option<Finding>, Error> {
        let missing = PgStore::missing_migrations(&self.config(context)?).await?;
        Ok(check::missing_migrations(context, &self.describe(context), missing))
    }

    async fn migrate(&self, context: &Context<'_>) -> Result<Option<u32>, Error> {
        PgStore::migrate(&self.config(context)?).await.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use onceward_plugin::documentation::{SharedOption, assert_documented};

    use super::*;

    #[test]
    fn table_and_struct_document_the_ranges_and_defaults_of_the_code() {
        let connections = PgOptions::CONNECTIONS;
        assert_documented::<PostgresTable>(
            include_str!("../config.rs"),
            &[
                SharedOption {
                    option: "connections",
                    field: "handler_connections",
                    range: Some(format!("from {} to {}", connections.start(), connections.end())),
                    default: None,
                },
                SharedOption {
                    option: "schema",
                    field: "schema",
                    range: None,
                    default: Some(format!("`{}`", default_schema())),
                },
            ],
        );
    }
}
