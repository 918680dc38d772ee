//! The server, the login and TLS of a Postgres store: [`PgEndpoint`].

use std::fmt;
use std::sync::Arc;

use onceward::{Error, ErrorKind};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::tls::{self, TlsPolicy};

/// Returns the password that is valid now. It may read a file.
pub type PasswordProvider = Arc<dyn Fn() -> Result<String, Error> + Send + Sync>;

/// A Postgres database, and how to log in to it.
///
/// `Debug` shows neither the URL nor passwords.
#[derive(Clone)]
#[non_exhaustive]
pub struct PgEndpoint {
    /// `postgres://user:password@host:port/database?sslmode=verify-full`.
    ///
    /// If the URL gives no `sslmode`, the server is verified (`verify-full`, against the system's authorities or
    /// `sslrootcert`), except on this host: loopback addresses, `localhost` and Unix sockets. A mode without verification is
    /// refused for other hosts, unless [`allow_plaintext`](Self::allow_plaintext) is set. `options` and `PGOPTIONS` are sent
    /// as startup parameters, which most poolers reject.
    pub url: String,
    /// The user, in place of the URL's.
    pub username: Option<String>,
    /// The password, in place of the URL's.
    pub password: Option<String>,
    /// Called for the password of each new connection, so that a changed one is used without a restart; it takes precedence
    /// over [`password`](Self::password). While it fails, the last password it returned is used.
    pub password_from: Option<PasswordProvider>,
    /// The certificates, in PEM, of the authorities that may have signed the server's. With them the server is verified:
    /// `verify-full`, unless the URL gives `sslmode=verify-ca`.
    pub ca: Option<Vec<u8>>,
    /// Connects as the URL says even where the password could be intercepted: to another host without TLS, or without
    /// verifying the server. For networks that no third party can access. Default false.
    pub allow_plaintext: bool,
}

impl PgEndpoint {
    /// The database at `url`, with its login and no other CA.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            username: None,
            password: None,
            password_from: None,
            ca: None,
            allow_plaintext: false,
        }
    }

    /// Checks that the URL and its TLS mode can be used, without connecting.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], with the fix. It never quotes the URL.
    pub fn check(&self) -> Result<(), Error> {
        self.connect_options().map(drop)
    }

    /// The options of a connection, with TLS as required.
    pub(crate) fn connect_options(&self) -> Result<PgConnectOptions, Error> {
        tls::check_parameters(&self.url)?;
        let mut options = self.url.parse::<PgConnectOptions>().map_err(|_| {
            let context =
                "the URL cannot be read; write postgres://user:password@host:port/database, with special \
                 characters of the password percent-encoded";
            Error::new(ErrorKind::Config, "use the Postgres URL", context)
        })?;
        if let Some(username) = &self.username {
            options = options.username(username);
        }
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        if let Some(pem) = &self.ca {
            if !matches!(options.get_ssl_mode(), PgSslMode::VerifyCa) {
                options = options.ssl_mode(PgSslMode::VerifyFull);
            }
            options = options.ssl_root_cert_from_pem(pem.clone());
        }
        let policy =
            if self.allow_plaintext { TlsPolicy::AllowPlaintext } else { TlsPolicy::of_url(&self.url) };
        policy.secured(&options)
    }
}

impl fmt::Debug for PgEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgEndpoint")
            .field("password_from", &self.password_from.is_some())
            .field("ca", &self.ca.is_some())
            .field("allow_plaintext", &self.allow_plaintext)
            .finish_non_exhaustive()
    }
}
