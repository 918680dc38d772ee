//! Configuration of a Postgres store: [`PgConfig`].

use std::ops::RangeInclusive;
use std::time::Duration;

use onceward::{Error, ErrorKind};

use crate::endpoint::PgEndpoint;

const CONFIGURE: &str = "configure the Postgres store";

/// Where Postgres is, and how the store uses it.
///
/// `Debug` shows neither the URL nor passwords.
///
/// ```
/// use onceward_postgres::PgConfig;
/// use std::time::Duration;
///
/// let mut config = PgConfig::new("postgres://worker@db.example/shop?sslmode=verify-full");
/// config.endpoint.password = Some("secret".into());
/// config.options.statement_timeout = Duration::from_secs(5);
/// config.check().unwrap();
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PgConfig {
    /// The server, the login and TLS.
    pub endpoint: PgEndpoint,
    /// How the store uses its connections.
    pub options: PgOptions,
}

/// How a store uses its connections, whichever server they lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PgOptions {
    /// The schema that holds the store's tables, `[a-z_][a-z0-9_]{0,62}`; default `onceward`.
    pub schema: String,
    /// Whether opening the store applies pending migrations; default true. With false, as for a role that may not change
    /// tables, a missing or older schema is an error.
    pub migrate: bool,
    /// Connections for claims and completions at most, from 1 to 1000; default 8.
    pub max_connections: u32,
    /// Connections for the transactions of handlers at most, from 1 to 1000; default as many as
    /// [`max_connections`](Self::max_connections). A pool of the application's own has its own limit.
    pub handler_connections: Option<u32>,
    /// Time limit of one statement in a handler's transaction, and of the time such a transaction may be idle; default
    /// none. The statement of a dropped handler runs on in the server until then. A pool of the application's own keeps its
    /// settings.
    pub handler_statement_timeout: Option<Duration>,
    /// How long a claim waits for a row lock of another transaction before the key counts as in progress; at least 1 ms and
    /// less than [`statement_timeout`](Self::statement_timeout), default 250 ms.
    pub lock_timeout: Duration,
    /// Time limit of one statement in the server, at most 1 h, default 10 s. One second later the connection is abandoned.
    pub statement_timeout: Duration,
    /// How long a call waits for a connection; default 5 s. Opening one may take six times as long, at least 30 s: it goes on
    /// after the call that began it has failed, and the next call uses the connection.
    pub connect_timeout: Duration,
}

impl PgConfig {
    /// The database at `url`, with the defaults of [`PgEndpoint`] and [`PgOptions`].
    pub fn new(url: impl Into<String>) -> Self {
        Self { endpoint: PgEndpoint::new(url), options: PgOptions::default() }
    }

    /// Checks that the values are valid and agree, without connecting.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the value and the fix. It never quotes the URL.
    pub fn check(&self) -> Result<(), Error> {
        self.endpoint.check()?;
        self.options.check()
    }
}

impl Default for PgOptions {
    fn default() -> Self {
        Self {
            schema: Self::DEFAULT_SCHEMA.to_owned(),
            migrate: true,
            max_connections: 8,
            handler_connections: None,
            handler_statement_timeout: None,
            lock_timeout: Self::DEFAULT_LOCK_TIMEOUT,
            statement_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

impl PgOptions {
    /// The default of [`schema`](Self::schema).
    pub const DEFAULT_SCHEMA: &str = "onceward";
    /// The default of [`lock_timeout`](Self::lock_timeout).
    pub const DEFAULT_LOCK_TIMEOUT: Duration = Duration::from_millis(250);
    /// The range of [`max_connections`](Self::max_connections) and [`handler_connections`](Self::handler_connections).
    pub const CONNECTIONS: RangeInclusive<u32> = 1..=1_000;

    /// Checks that the values are valid and agree.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the value and the fix.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |what: String| Err(Error::new(ErrorKind::Config, CONFIGURE, what));
        if !is_identifier(&self.schema) {
            return invalid(format!(
                "schema is {:?}; use 1 to 63 of a-z, 0-9 and _, not beginning with a digit",
                self.schema
            ));
        }
        let connections = [Some(self.max_connections), self.handler_connections];
        if connections.iter().flatten().any(|connections| !Self::CONNECTIONS.contains(connections)) {
            return invalid(
                "max_connections or handler_connections is out of range; from 1 to 1000".to_owned(),
            );
        }
        if self.lock_timeout < Duration::from_millis(1) || self.lock_timeout >= self.statement_timeout {
            return invalid(format!(
                "lock_timeout is {:?} and statement_timeout {:?}; the first must be at least 1 ms and less than the \
                 second",
                self.lock_timeout, self.statement_timeout
            ));
        }
        if self.statement_timeout > Duration::from_secs(3_600) {
            return invalid(format!("statement_timeout is {:?}; at most an hour", self.statement_timeout));
        }
        Ok(())
    }
}

pub(crate) fn is_identifier(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && !bytes[0].is_ascii_digit()
        && bytes.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// `name` as a quoted SQL identifier.
///
/// # Errors
/// [`ErrorKind::Config`] for a name that is not `[a-z_][a-z0-9_]{0,62}`.
pub(crate) fn quote_identifier(name: &str) -> Result<String, Error> {
    if is_identifier(name) {
        return Ok(format!("\"{name}\""));
    }
    let context =
        format!("{name:?} is not a plain name; use 1 to 63 of a-z, 0-9 and _, not beginning with a digit");
    Err(Error::new(ErrorKind::Config, CONFIGURE, context))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PgConfig {
        PgConfig::new("postgres://worker:s3cret-canary@db.example/shop")
    }

    #[test]
    fn a_schema_that_is_no_plain_name_is_refused() {
        let check = |name: &str| {
            let mut config = config();
            config.options.schema = name.to_owned();
            config.check()
        };
        for name in ["", "1st", "Onceward", "a b", "x\"; DROP SCHEMA public; --", "ä", &"x".repeat(64)] {
            assert_eq!(check(name).unwrap_err().kind(), ErrorKind::Config, "{name}");
        }
        for name in ["onceward", "_2", &"x".repeat(63)] {
            check(name).unwrap();
        }
    }

    #[test]
    fn a_lock_timeout_beyond_the_statement_timeout_is_refused() {
        let mut config = config();
        config.options.lock_timeout = Duration::from_secs(10);
        assert!(config.check().unwrap_err().to_string().contains("lock_timeout"));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for spoil in [
            (|options| options.max_connections = 0) as fn(&mut PgOptions),
            |options| options.handler_connections = Some(0),
            |options| options.lock_timeout = Duration::ZERO,
            |options| options.statement_timeout = Duration::from_secs(3_601),
        ] {
            let mut options = PgOptions::default();
            options.check().unwrap();
            spoil(&mut options);
            assert_eq!(options.check().unwrap_err().kind(), ErrorKind::Config, "{options:?}");
        }
    }

    #[test]
    fn the_password_shows_nowhere() {
        assert!(!format!("{:?}", config()).contains("canary"));
        let error = PgConfig::new("postgres://worker:s3cret-canary@host:no-port/x").check().unwrap_err();
        assert!(!format!("{error:?} {error}").contains("canary"));
    }
}
