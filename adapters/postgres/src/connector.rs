//! Opens the store's connections, with the session settings that each use of them needs: [`Connector`].

use std::time::Duration;

use onceward::{Error, ErrorKind};
use sqlx::postgres::{PgConnectOptions, PgPool, PgTypeInfo};

use crate::config::{PgConfig, PgOptions};
use crate::endpoint::PasswordProvider;
use crate::error::store_error;
use crate::pool::{Pool, Session, SessionOpener};

/// The least time budget for opening a connection.
const MIN_OPEN_BUDGET: Duration = Duration::from_secs(30);

/// A checked configuration, from which connections are opened.
pub(crate) struct Connector {
    pub(crate) options: PgOptions,
    connect: PgConnectOptions,
    password: Option<PasswordProvider>,
}

impl Connector {
    /// Checks `config`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`].
    pub(crate) fn new(config: PgConfig) -> Result<Self, Error> {
        config.options.check()?;
        let connect = config.endpoint.connect_options()?;
        Ok(Self { options: config.options, connect, password: config.endpoint.password_from })
    }

    /// Connects to the database of `pool`, as it does: the application has decided about TLS.
    ///
    /// # Errors
    /// [`ErrorKind::Config`].
    pub(crate) fn for_pool(pool: &PgPool, options: PgOptions) -> Result<Self, Error> {
        options.check()?;
        Ok(Self { options, connect: pool.connect_options().as_ref().clone(), password: None })
    }

    /// Host, port and database, for messages to users.
    pub(crate) fn address(&self) -> String {
        let database = self.connect.get_database().unwrap_or(self.connect.get_username());
        format!("{}:{}/{database}", self.connect.get_host(), self.connect.get_port())
    }

    /// The schema's name, a valid identifier.
    pub(crate) fn schema(&self) -> &str {
        &self.options.schema
    }

    /// A pool for claims and completions. Each of its connections prepares the statements `prepared` when it is opened.
    pub(crate) fn store_pool(&self, prepared: Vec<(String, Vec<PgTypeInfo>)>) -> Pool {
        let PgOptions { lock_timeout, statement_timeout, max_connections, connect_timeout, .. } =
            self.options;
        let opener =
            self.opener("onceward", store_settings(lock_timeout, statement_timeout)).preparing(prepared);
        Pool::new(opener, max_connections, connect_timeout)
    }

    /// A pool for the transactions of handlers.
    pub(crate) fn handler_pool(&self) -> Pool {
        let options = &self.options;
        let mut settings = vec![("idle_session_timeout", "0".to_owned())];
        if let Some(timeout) = options.handler_statement_timeout {
            settings.push(("statement_timeout", setting_in_ms(timeout)));
            settings.push(("idle_in_transaction_session_timeout", setting_in_ms(timeout)));
        }
        let limit = options.handler_connections.unwrap_or(options.max_connections);
        Pool::new(self.opener("onceward-handler", settings), limit, options.connect_timeout)
    }

    /// Opens single connections that listen for notifications.
    pub(crate) fn listener(&self) -> SessionOpener {
        self.opener("onceward", Vec::new())
    }

    fn opener(&self, name: &str, settings: Vec<(&'static str, String)>) -> SessionOpener {
        let budget = (self.options.connect_timeout * 6).max(MIN_OPEN_BUDGET);
        let connect = self.connect.clone().application_name(name);
        SessionOpener::new(connect, self.password.clone(), settings, budget)
    }

    /// Opens a connection outside the pools and without their timeouts, for migrations and checks.
    pub(crate) async fn connect(&self) -> Result<Session, Error> {
        let operation = || format!("connect to {}", self.address());
        let opener = self.opener("onceward", store_settings(Duration::ZERO, Duration::ZERO));
        match tokio::time::timeout(self.options.connect_timeout, opener.open()).await {
            Ok(outcome) => outcome.map_err(|error| store_error(operation(), error)),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                operation(),
                format!(
                    "no answer within {:?}; is the server up and the address right?",
                    self.options.connect_timeout
                ),
            )),
        }
    }
}

/// The settings of the store's sessions, which override those of the role and the database. A timeout of zero is no limit.
fn store_settings(lock: Duration, statement: Duration) -> Vec<(&'static str, String)> {
    let limit =
        |duration: Duration| if duration.is_zero() { "0".to_owned() } else { setting_in_ms(duration) };
    vec![
        ("lock_timeout", limit(lock)),
        ("statement_timeout", limit(statement)),
        ("idle_in_transaction_session_timeout", limit(statement)),
        ("transaction_timeout", "0".to_owned()),
        ("idle_session_timeout", "0".to_owned()),
        // An ack follows a completion: it must be on disk.
        ("synchronous_commit", "on".to_owned()),
        ("default_transaction_isolation", "read committed".to_owned()),
        // Names are resolved in no schema where other roles may create objects; `pg_temp` would be first if it were not named.
        ("search_path", "pg_catalog, pg_temp".to_owned()),
        ("standard_conforming_strings", "on".to_owned()),
        ("bytea_output", "hex".to_owned()),
    ]
}

/// A server setting in milliseconds, at least 1, since 0 is no limit.
fn setting_in_ms(duration: Duration) -> String {
    duration.as_millis().max(1).to_string()
}
