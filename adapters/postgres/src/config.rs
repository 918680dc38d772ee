//! Where the server is and how it is used: [`PgConfig`].

use std::sync::Arc;
use std::time::Duration;

use onceward::{Error, ErrorKind};
use sqlx::postgres::{PgConnectOptions, PgPool, PgSslMode, PgTypeInfo};

use crate::error::store_error;
use crate::pool::{PasswordSource, Pool, Session, SessionOpener};
use crate::tls::{self, TlsPolicy};

const WHAT: &str = "configure the Postgres store";

/// How to open a [`PgStore`](crate::PgStore). `Debug` shows no password.
#[derive(Clone)]
pub struct PgConfig {
    options: PgConnectOptions,
    trust: TlsPolicy,
    password: Option<PasswordSource>,
    schema: String,
    max_connections: u32,
    handler_connections: Option<u32>,
    handler_statement_timeout: Option<Duration>,
    pub(crate) lock_timeout: Duration,
    pub(crate) statement_timeout: Duration,
    connect_timeout: Duration,
    pub(crate) migrate: bool,
    pub(crate) effects: Option<PgPool>,
}

impl std::fmt::Debug for PgConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PgConfig")
            .field("place", &self.place())
            .field("schema", &self.schema)
            .field("max_connections", &self.max_connections)
            .field("handler_connections", &self.handler_connections)
            .field("handler_statement_timeout", &self.handler_statement_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("migrate", &self.migrate)
            .field("own_pool", &self.effects.is_none())
            .field("password_source", &self.password.is_some())
            .finish()
    }
}

impl PgConfig {
    /// The database at `url` (`postgres://user:password@host:port/database?sslmode=verify-full`). On another host than this
    /// the server is verified (`verify-full`, against the system's authorities or `sslrootcert`) where the URL says nothing, and
    /// a mode that does not verify it is refused when connecting, unless [allowed](Self::allow_plaintext).
    ///
    /// # Errors
    /// [`Error`] if the URL cannot be read. It does not repeat the URL.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        tls::check_parameters(url)?;
        let options = url.parse::<PgConnectOptions>().map_err(|_| {
            let context =
                "the URL cannot be read; write postgres://user:password@host:port/database, with special \
                 characters of the password percent-encoded";
            Error::new(ErrorKind::Config, WHAT, context)
        })?;
        Ok(Self { trust: TlsPolicy::of_url(url), ..Self::new(options) })
    }

    /// The database that `options` name. As for [`from_url`](Self::from_url) its server is verified on another host; `prefer`,
    /// their default, becomes `verify-full` there. Their session settings for timeouts and `synchronous_commit` are replaced. Other
    /// startup parameters (`options`, `PGOPTIONS`) are sent as they are; most poolers reject them.
    pub fn new(options: PgConnectOptions) -> Self {
        Self {
            options,
            trust: TlsPolicy::Unspecified,
            password: None,
            schema: "onceward".to_owned(),
            max_connections: 8,
            handler_connections: None,
            handler_statement_timeout: None,
            lock_timeout: Duration::from_millis(250),
            statement_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            migrate: true,
            effects: None,
        }
    }

    /// The application's own pool for the transactions of handlers. The store's claims and completions use connections
    /// of their own to the same database, with timeouts of their own.
    pub fn with_pool(pool: PgPool) -> Self {
        let mut config = Self::new(pool.connect_options().as_ref().clone());
        config.effects = Some(pool);
        // The application connects like this already.
        config.trust = TlsPolicy::AllowPlaintext;
        config
    }

    /// The schema that holds the store's tables: `[a-z_][a-z0-9_]{0,62}`. `onceward` unless told.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// The user, instead of the URL's.
    #[must_use]
    pub fn username(mut self, username: &str) -> Self {
        self.options = self.options.username(username);
        self
    }

    /// The password, instead of the URL's.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.options = self.options.password(password);
        self
    }

    /// Where the password comes from: asked for each new connection, so that a changed one is used without a restart. It may
    /// read a file; while it fails, the last password it answered is used.
    #[must_use]
    pub fn password_from(
        mut self,
        source: impl Fn() -> Result<String, Error> + Send + Sync + 'static,
    ) -> Self {
        self.password = Some(Arc::new(source));
        self
    }

    /// The certificates, PEM, of the authorities that may have signed the server's. With them the server is verified:
    /// `verify-full`, unless the URL says `sslmode=verify-ca`.
    #[must_use]
    pub fn ca(mut self, pem: Vec<u8>) -> Self {
        if !matches!(self.options.get_ssl_mode(), PgSslMode::VerifyCa) {
            self.options = self.options.ssl_mode(PgSslMode::VerifyFull);
        }
        self.options = self.options.ssl_root_cert_from_pem(pem);
        self
    }

    /// Connects as the URL says even where the password could be read or taken on the way: to another host without TLS, or
    /// without looking at who answers. For networks where nobody else can be.
    #[must_use]
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        if allow {
            self.trust = TlsPolicy::AllowPlaintext;
        }
        self
    }

    /// How many connections the store opens at most for claims and completions, from 1; 8 unless told.
    #[must_use]
    pub fn max_connections(mut self, count: u32) -> Self {
        self.max_connections = count;
        self
    }

    /// How many connections the transactions of handlers use at most, from 1; as many as the store itself unless told. A
    /// pool of the application's own has its own limit.
    #[must_use]
    pub fn handler_connections(mut self, count: u32) -> Self {
        self.handler_connections = Some(count);
        self
    }

    /// How long the server may work on one statement of a handler's transaction, and how long such a transaction may sit
    /// idle; no limit unless told. A handler that is dropped leaves its statement running until then. A pool of the
    /// application's own keeps its settings.
    #[must_use]
    pub fn handler_statement_timeout(mut self, timeout: Duration) -> Self {
        self.handler_statement_timeout = Some(timeout);
        self
    }

    /// How long a claim waits for a rival's uncommitted write before it counts as in progress. 250 ms unless told;
    /// from 1 ms to below the statement timeout.
    #[must_use]
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    /// How long the server may work on one statement; the store gives up on a connection a second later. 10 s unless
    /// told; at most an hour.
    #[must_use]
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout;
        self
    }

    /// How long a call waits for a connection. 5 s unless told. Opening one may take six times as long, at least 30 s: it
    /// goes on after the call that began it has given up, and the next call gets the connection.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Whether [`PgStore::connect`](crate::PgStore::connect) brings the schema up to date. True unless told; false for
    /// a role that may not change tables: an older or missing schema is then refused.
    #[must_use]
    pub fn migrate_on_open(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Host, port and database, for people.
    pub fn place(&self) -> String {
        let options = &self.options;
        let database = options.get_database().unwrap_or(options.get_username());
        format!("{}:{}/{database}", options.get_host(), options.get_port())
    }

    /// The schema's name, valid as an identifier.
    pub(crate) fn schema_name(&self) -> &str {
        &self.schema
    }

    /// Checks what can be checked without the server.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::new(ErrorKind::Config, WHAT, what));
        if !is_identifier(&self.schema) {
            return wrong(format!(
                "schema is {:?}; use 1 to 63 of a-z, 0-9 and _, not beginning with a digit",
                self.schema
            ));
        }
        if self.max_connections == 0 || self.handler_connections == Some(0) {
            return wrong("max_connections or handler_connections is 0; at least 1".to_owned());
        }
        if self.lock_timeout < Duration::from_millis(1) || self.lock_timeout >= self.statement_timeout {
            return wrong(format!(
                "lock_timeout is {:?} and statement_timeout {:?}; the first must be at least 1 ms and less than the \
                 second",
                self.lock_timeout, self.statement_timeout
            ));
        }
        if self.statement_timeout > Duration::from_secs(3_600) {
            return wrong(format!("statement_timeout is {:?}; at most an hour", self.statement_timeout));
        }
        self.trust.secured(&self.options).map(drop)
    }

    /// Connections for claims and completions. `prepared` are statements that each connection prepares when it is opened.
    pub(crate) fn pool(&self, prepared: Vec<(String, Vec<PgTypeInfo>)>) -> Pool {
        let settings = store_settings(self.lock_timeout, self.statement_timeout);
        let opener = self.opener("onceward", settings).preparing(prepared);
        Pool::new(opener, self.max_connections, self.connect_timeout)
    }

    /// Connections for the transactions of handlers, unless the application brings a pool.
    pub(crate) fn effects_pool(&self) -> Pool {
        let mut settings = vec![("idle_session_timeout", "0".to_owned())];
        if let Some(timeout) = self.handler_statement_timeout {
            settings.push(("statement_timeout", ms(timeout)));
            settings.push(("idle_in_transaction_session_timeout", ms(timeout)));
        }
        let limit = self.handler_connections.unwrap_or(self.max_connections);
        Pool::new(self.opener("onceward-handler", settings), limit, self.connect_timeout)
    }

    /// For a single connection that listens, beside the store's own.
    pub(crate) fn listener(&self) -> SessionOpener {
        self.opener("onceward", Vec::new())
    }

    fn opener(&self, name: &str, settings: Vec<(&'static str, String)>) -> SessionOpener {
        let budget = (self.connect_timeout * 6).max(LEAST_BUDGET);
        // `validate` has refused what must not be connected to; without it, TLS is verified.
        let secured = self.trust.secured(&self.options);
        let options = secured.unwrap_or_else(|_| self.options.clone().ssl_mode(PgSslMode::VerifyFull));
        let options = options.application_name(name);
        SessionOpener::new(options, self.password.clone(), settings, budget)
    }

    /// A connection outside the pools, without their timeouts: for migrations and checks.
    pub(crate) async fn connect(&self) -> Result<Session, Error> {
        let place = || format!("connect to {}", self.place());
        let opener = self.opener("onceward", store_settings(Duration::ZERO, Duration::ZERO));
        match tokio::time::timeout(self.connect_timeout, opener.open()).await {
            Ok(outcome) => outcome.map_err(|error| store_error(place(), error)),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                place(),
                format!(
                    "no answer within {:?}; is the server up and the address right?",
                    self.connect_timeout
                ),
            )),
        }
    }
}

/// The least time for opening a connection.
const LEAST_BUDGET: Duration = Duration::from_secs(30);

/// What the store's sessions are set to, whatever the role or the database is set to. A timeout of zero is no limit.
fn store_settings(lock: Duration, statement: Duration) -> Vec<(&'static str, String)> {
    let limit = |duration: Duration| if duration.is_zero() { "0".to_owned() } else { ms(duration) };
    vec![
        ("lock_timeout", limit(lock)),
        ("statement_timeout", limit(statement)),
        ("idle_in_transaction_session_timeout", limit(statement)),
        ("transaction_timeout", "0".to_owned()),
        ("idle_session_timeout", "0".to_owned()),
        // An ack follows a completion: it must be on disk.
        ("synchronous_commit", "on".to_owned()),
        ("default_transaction_isolation", "read committed".to_owned()),
        // Nothing is looked up where others may create; `pg_temp` would be first if it were not named.
        ("search_path", "pg_catalog, pg_temp".to_owned()),
        ("standard_conforming_strings", "on".to_owned()),
        ("bytea_output", "hex".to_owned()),
    ]
}

/// As a setting of the server: at least 1, since 0 is no limit.
fn ms(duration: Duration) -> String {
    duration.as_millis().max(1).to_string()
}

fn is_identifier(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && !bytes[0].is_ascii_digit()
        && bytes.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// `name` as an SQL identifier, if it is a valid one.
pub(crate) fn quoted(name: &str) -> Result<String, Error> {
    if is_identifier(name) {
        return Ok(format!("\"{name}\""));
    }
    let context =
        format!("{name:?} is no plain name; use 1 to 63 of a-z, 0-9 and _, not beginning with a digit");
    Err(Error::new(ErrorKind::Config, WHAT, context))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PgConfig {
        PgConfig::from_url("postgres://worker:s3cret-canary@db.example/shop").unwrap()
    }

    #[test]
    fn a_schema_that_is_no_plain_name_is_refused() {
        for name in ["", "1st", "Onceward", "a b", "x\"; DROP SCHEMA public; --", "ä", &"x".repeat(64)] {
            let error = config().schema(name).validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{name}");
        }
        for name in ["onceward", "_2", &"x".repeat(63)] {
            config().schema(name).validate().unwrap();
        }
    }

    #[test]
    fn a_lock_timeout_beyond_the_statement_timeout_is_refused() {
        let slow = config().lock_timeout(Duration::from_secs(10));
        assert!(slow.validate().unwrap_err().to_string().contains("lock_timeout"));
    }

    #[test]
    fn the_password_shows_nowhere() {
        assert!(!format!("{:?} {}", config(), config().place()).contains("canary"));
        let error = PgConfig::from_url("postgres://worker:s3cret-canary@host:no-port/x").unwrap_err();
        assert!(!format!("{error:?} {error}").contains("canary"));
    }
}
